"""What this machine can do, measured alone, written as a file of conf/hardware, and held against whole steps."""
