"""What a client holds on a submitted job."""
