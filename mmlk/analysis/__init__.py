"""What people look at beside training: logs and curves, costs, fields, maps, samples."""
