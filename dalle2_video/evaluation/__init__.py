"""How good what was learnt is: figures with intervals, each of which says what it was measured on."""
