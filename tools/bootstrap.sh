#!/bin/sh
# Install the distribution's python3, which tools/build_caffe.py needs to run. `make` calls this if there is none.
set -u

install="apt-get install -y --no-install-recommends python3 python3-venv"

if ! command -v apt-get >/dev/null; then
    echo "There is no /usr/bin/python3, and no apt-get to install it: install Python 3.10 or newer there." >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    sudo=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    printf 'There is no /usr/bin/python3. Run this, then run make again:\n  sudo apt-get update && sudo %s\n' "$install" >&2
    exit 1
fi

echo "Installing python3 with apt-get"
# $sudo and $install must be split into words.
if ! said=$({ $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive $install; } 2>&1); then
    echo "apt-get could not install python3: $(echo "$said" | grep -m1 '^E: ')" >&2
    exit 1
fi
