"""One file a task: what it reads, what it minimises, what it reports."""
