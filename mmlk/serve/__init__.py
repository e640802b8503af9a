"""A web page that predicts pictures, behind ``mmlk serve``; it needs Starlette and Uvicorn."""
