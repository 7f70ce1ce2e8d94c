"""The applications: pose and detection from flags to report, and what any run needs around its task."""
