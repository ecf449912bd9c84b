#!/bin/sh
# Installs iii-super from a release archive, or from the self-contained file, once its checksum is
# right.
#
#   sh install.sh [--prefix DIR] FILE
#   sh install.sh [--prefix DIR] [--single] --version VERSION --from URL
#
# FILE is one beside which FILE.sha256 lies; URL is a directory that holds both, and with --single the
# self-contained file is taken from there. The prefix is /usr/local for root, and ~/.local for
# everybody else. Nothing is put in place before everything has been checked; programs are replaced by
# renaming, so that running ones go on.
set -eu

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

usage() {
    cat >&2 <<'END'
usage: sh install.sh [--prefix DIR] FILE
       sh install.sh [--prefix DIR] [--single] --version VERSION --from URL
END
    exit 2
}

if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=${HOME:?}/.local; fi
archive= from= version= kind=.tar.gz
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) [ $# -ge 2 ] || usage; prefix=$2; shift 2 ;;
        --from) [ $# -ge 2 ] || usage; from=$2; shift 2 ;;
        --version) [ $# -ge 2 ] || usage; version=$2; shift 2 ;;
        --single) kind=; shift ;;
        -*) usage ;;
        *) [ -z "$archive" ] || usage; archive=$1; shift ;;
    esac
done

[ "$(uname -s)" = Linux ] || fail "this release is for Linux, and this is $(uname -s)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

if [ -n "$from" ]; then
    [ -z "$archive" ] || usage
    [ -n "$version" ] || fail "say which version: --version 0.1.0"
    name=iii-super-$version-$(uname -m)-linux$kind
    command -v curl >/dev/null || fail "curl is needed to download; install it, or name a file"
    for file in "$name" "$name.sha256"; do
        printf 'downloading %s\n' "$file"
        curl -fSL --proto '=https,file' --retry 3 -o "$work/$file" "$from/$file" ||
            fail "failed to download $from/$file; nothing was installed"
    done
    archive=$work/$name
fi
[ -n "$archive" ] || usage
[ -f "$archive" ] || fail "there is no file $archive"
[ -f "$archive.sha256" ] || fail "$archive.sha256 is missing: without it the file cannot be checked"

# The name in the checksum file does not matter, its sum does.
wanted=$(cut -d ' ' -f 1 <"$archive.sha256")
found=$(sha256sum <"$archive" | cut -d ' ' -f 1)
[ "$wanted" = "$found" ] ||
    fail "$archive has the SHA-256 $found, and $wanted was announced; nothing was installed"

# The helpers first: a program that finds one of another version says so and does not run.
programs="iii-shim iii-vfs iii-krun iii-super"
case $archive in
    *.tar.gz)
        mkdir "$work/tree"
        tar -xzf "$archive" -C "$work/tree" --no-same-owner || fail "failed to unpack $archive"
        set -- "$work"/tree/iii-super-*
        [ $# = 1 ] && [ -x "$1/bin/iii-super" ] || fail "$archive holds no iii-super"
        tree=$1
        ;;
    *)
        # All there is; the rest it writes itself.
        programs=iii-super
        tree=$work/tree
        mkdir -p "$tree/bin" "$tree/share/man/man1" "$tree/share/completions"
        install -m 0755 "$archive" "$tree/bin/iii-super"
        ;;
esac
"$tree/bin/iii-super" --version >/dev/null ||
    fail "the programs in $archive do not run on this machine; nothing was installed"
if [ "$programs" = iii-super ]; then
    "$tree/bin/iii-super" man --out "$tree/share/man/man1" >/dev/null
    for shell in bash zsh fish; do
        "$tree/bin/iii-super" completions "$shell" >"$tree/share/completions/iii-super.$shell"
    done
fi

# One file, in one step.
put() {
    mkdir -p "$(dirname "$3")"
    install -m "$1" "$2" "$3.new.$$"
    mv -f "$3.new.$$" "$3"
}
for program in $programs; do
    put 0755 "$tree/bin/$program" "$prefix/bin/$program"
done
# What guests of another architecture start with, if the release has it.
for init in "$tree"/bin/vm-init-*; do
    [ ! -f "$init" ] || put 0755 "$init" "$prefix/bin/$(basename "$init")"
done
for page in "$tree"/share/man/man1/*; do
    put 0644 "$page" "$prefix/share/man/man1/$(basename "$page")"
done
put 0644 "$tree/share/completions/iii-super.bash" "$prefix/share/bash-completion/completions/iii-super"
put 0644 "$tree/share/completions/iii-super.zsh" "$prefix/share/zsh/site-functions/_iii-super"
put 0644 "$tree/share/completions/iii-super.fish" "$prefix/share/fish/vendor_completions.d/iii-super.fish"
for unit in "$tree"/share/systemd/*; do
    [ -f "$unit" ] || continue
    put 0644 "$unit" "$prefix/share/iii-super/systemd/$(basename "$unit")"
done

printf '%s is installed in %s\n' "$("$prefix/bin/iii-super" --version)" "$prefix/bin"
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) printf 'add it to your PATH: export PATH="%s/bin:$PATH"\n' "$prefix" ;;
esac
printf 'what this host can run: iii-super doctor\n'
