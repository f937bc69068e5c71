"""Jobs: recordings that are transcribed while no client waits, and that survive a restart."""
