"""Plugins for other programs: the llm command line tool."""
