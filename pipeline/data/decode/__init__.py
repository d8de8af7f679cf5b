"""Decode planned clips to frames, in a child process that may crash, hang or leak without harm."""
