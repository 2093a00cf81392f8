"""Opens image files of all formats: what their headers say, and their pixels as stored."""
