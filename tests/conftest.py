"""What holds for all tests."""

import signal

# A shell that runs them in the background has them ignore Ctrl-C, and with them every process that
# they start in order to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)
