"""The command line. What a command needs is imported when the command is called."""
