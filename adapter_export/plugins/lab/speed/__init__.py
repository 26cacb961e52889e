"""Times on this machine: of calls in turns, of concurrent calls, and of the forms of a base."""
