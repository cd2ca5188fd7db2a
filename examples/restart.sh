#!/bin/sh
# Runs a command and starts it again whenever it ends, until told to stop: the container lives on when the kernel kills
# the server in it. `docker compose up --abort-on-container-exit` stops everything at the first container that exits,
# one that its restart policy brings back included.
trap 'kill "$server"; exit 0' TERM INT
while :; do
  "$@" &
  server=$!
  wait "$server"
  status=$?
  if [ "$status" -ne 137 ]; then # not killed, so broken: do not spin
    echo "The server ended with status $status and is started again."
    sleep 1
  fi
done
