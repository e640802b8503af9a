"""Published weights of the four families: where they are, what they contain, how they load."""
