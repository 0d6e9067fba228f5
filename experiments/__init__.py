"""The experiment registry: plain files on a shared file system, readable by every node, owned by no server."""
