"""CRC-32C of rows and of files, computed without holding the interpreter's lock."""
