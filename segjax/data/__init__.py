"""From files on disk to batches: sources, strict reading, the geometric warp, the pipeline, the audit."""
