"""The command line: parses options, calls the engine, prints, exits."""
