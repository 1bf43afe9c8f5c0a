"""Upload, download and echo of files, written on the public streaming API."""
