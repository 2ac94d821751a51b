#!/usr/bin/env bash
# Fetches Debian's kernels that Cloister is tested on, as files; nothing is installed.
#
#     kernels.sh FOLDER
#
# Leaves FOLDER/vmlinuz-6.1, vmlinuz-6.12 and vmlinuz-new (6.16 or newer), each with a line beside it that
# names its package. What is there already is not fetched again. Uses the mirror that apt uses here.
set -euo pipefail
mkdir -p "$1"
folder=$(realpath "$1")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# kernel NAME SUITE: the newest kernel for virtual machines of a suite.
kernel() {
    local name=$1 suite=$2 package
    [ -s "$folder/vmlinuz-$name" ] && return
    mkdir -p "$work/$name/lists/partial"
    cd "$work/$name"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >sources.list
    local apt=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o APT::Sandbox::User=root -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=")
    apt-get "${apt[@]}" update -qq
    # The meta package depends on the image, whose modules are not wanted; newer ones put the kernel itself
    # into a package of its own.
    package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 |
        sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    local binary
    binary=$(apt-cache "${apt[@]}" depends "$package" | sed -n 's/.*Depends: \(linux-binary-[0-9].*\)/\1/p' | head -n 1)
    apt-get "${apt[@]}" download -qq "${binary:-$package}"
    dpkg --fsys-tarfile ./*.deb | tar -xO --wildcards '*/vmlinuz*' >vmlinuz
    echo "${binary:-$package}" >"$folder/vmlinuz-$name.package"
    mv vmlinuz "$folder/vmlinuz-$name"
    echo "$name: ${binary:-$package}"
}

kernel 6.1 bookworm
kernel 6.12 bookworm-backports
kernel new trixie-backports
