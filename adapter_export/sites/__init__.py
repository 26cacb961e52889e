"""Sites: named places in a base where an adapter can act, found by the structure of its dataflow."""
