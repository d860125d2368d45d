"""The same kernel inside Spark: tasks read ranges of the archive with tidemill's own reader, and exchange frames as Arrow bytes."""
