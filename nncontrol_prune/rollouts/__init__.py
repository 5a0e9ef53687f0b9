"""The transition schema, the recorder and the reader."""
