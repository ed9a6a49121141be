#!/bin/sh
# park.sh PROGRAM MODEL: a parked chat, continued in another process, gives the same text as one that was never parked.
set -eu
file=parked.$$
trap 'rm -f "$file"' EXIT
"$1" "$2" whole "$file" >park-whole.txt
"$1" "$2" save "$file" >park-save.txt
"$1" "$2" load "$file" >park-load.txt
cat park-save.txt park-load.txt
# "first part" + "second part" is the whole text.
first=$(sed -n 's/^text: //p' park-save.txt)
second=$(sed -n 's/^text: //p' park-load.txt)
whole=$(sed -n 's/^text: //p' park-whole.txt)
[ -n "$second" ] && [ "$first$second" = "$whole" ] || { echo "\"$first\" + \"$second\" is not \"$whole\""; exit 1; }
