"""A stand-in for sbatch and squeue, driven by files beside the programs."""

from pathlib import Path

# Notes every call. With `limit` it refuses an array that would make more jobs than that; with `die`
# it kills whoever called it, once the job is made and before it has told its number; with `orphan`
# before the job is made, which it makes once there is `go`.
SBATCH = """\
#!/bin/sh
here=$(dirname "$0")
array=$(echo "$*" | sed -n 's/.*--array=\\([^ %]*\\).*/\\1/p')
[ -n "$array" ] || for script; do :; done
[ -n "$array" ] || array=$(sed -n 's/^#SBATCH --array=\\([^ %]*\\).*/\\1/p' "$script")
count=$(echo "${array:-0}" | tr , '\\n' |
    awk -F- '{n += ($2 == "" ? 1 : $2 - $1 + 1)} END {print n}')
held=$(cat "$here/held" 2>/dev/null || echo 0)
if [ -e "$here/limit" ] && [ $((held + count)) -gt $(cat "$here/limit") ]; then
    echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2
    echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2
    exit 1
fi
if [ -e "$here/orphan" ]; then
    rm "$here/orphan"
    kill -9 $PPID
    tries=0
    until [ -e "$here/go" ] || [ $((tries += 1)) -gt 600 ]; do sleep .05; done
fi
echo $((held + count)) > "$here/held"
echo "$*" >> "$here/calls"
job=$(wc -l < "$here/calls")
echo "$job|$(echo "$*" | sed -n 's/.*--comment=\\([^ ]*\\).*/\\1/p')" >> "$here/comments"
[ ! -e "$here/die" ] || { rm "$here/die"; kill -9 $PPID; exit 1; }
echo $job
"""
# With --name it tells comments, as for a look at what was submitted; it holds no element.
SQUEUE = """\
#!/bin/sh
case "$*" in *--name=*) cat "$(dirname "$0")/comments" 2>/dev/null;; esac
[ ! -e "$(dirname "$0")/down" ] || { echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1; }
"""


class Scheduler:
    """The stand-in: its folder of switches, and the calls of sbatch so far as lists of words."""

    def __init__(self, folder: Path):
        folder.mkdir()
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.folder = folder

    def __call__(self):
        calls = self.folder / "calls"
        return [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []

    def set(self, name, value=""):
        (self.folder / name).write_text(str(value))

    def unset(self, name):
        (self.folder / name).unlink()
