"""Where the science meets the machines: executors, job states and what runs on a node."""
