"""What tests start or talk to: a Hub on this machine, another tool's clock. Nothing here is a test."""
