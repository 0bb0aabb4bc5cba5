"""What a file or folder is that somebody wants to register, and what to do where it is not served as it is."""
