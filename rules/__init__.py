"""Rules: the file format, signals over the stream, decisions on their edges."""
