"""Pictures and pages about what is in run folders."""
