"""What tests share: servers, stacks, data, and waiting for conditions."""
