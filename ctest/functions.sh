#!/bin/sh
# functions.sh HEADER: prints the names of the functions that cleave.h declares, sorted, one per line.
sed -n 's/^[a-z][^(]*[ *]\(cleave_[a-z0-9_]*\)(.*/\1/p' "$1" | LC_ALL=C sort
