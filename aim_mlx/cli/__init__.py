"""The command line: one thin module a command, which parses, makes one library call and prints."""
