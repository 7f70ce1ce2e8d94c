"""The life of a job of processes: signals, endings, what processes tell one another, who waits for whom."""
