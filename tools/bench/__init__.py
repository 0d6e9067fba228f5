"""Benches: each module measures one thing, prints a table for people and, with --json, writes one flat object."""
