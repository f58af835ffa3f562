#!/bin/sh
# Secrets that are mounted as files become variables of this one process, and so never of the container's configuration, which
# `docker inspect` shows. A file named like a variable (DAGSTER_POSTGRES_URL, HF_TOKEN) is one; google-credentials.json is not.
# A variable that is set already stays as it is.
set -eu

for file in "${SECRETS_FOLDER:-/run/secrets}"/*; do
    name=${file##*/}
    case $name in
        *[!A-Z0-9_]* | [0-9]*) continue ;;
    esac
    [ -f "$file" ] || continue
    if ! [ -r "$file" ]; then
        echo "entrypoint: the secret $name cannot be read by uid $(id -u): chmod or chown its file on the host." >&2
        exit 1
    fi
    if [ -z "$(printenv "$name" || true)" ]; then
        export "$name=$(cat "$file")"
    fi
done

exec "$@"
