"""The stream by itself: real code, a tap and an ingest that live in the test's memory."""
