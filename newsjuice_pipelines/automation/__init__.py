"""How assets are run: partitions, tags, executors, jobs, schedules and sensors. What they compute is in the domain packages."""
