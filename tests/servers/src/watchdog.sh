# Runs a server until the process that started this one closes the pipe, in whatever way it ends.
# Arguments: the server's folder, its output file, its command line.
folder=$1
output=$2
shift 2
# Sent to the orphans of a process that has left a paused one among them.
trap '' HUP
"$@" </dev/null >>"$output" 2>&1 &
server=$!
echo "$server"
exec >/dev/null 2>&1
if read -r word; then
    # Our starter has ended the server and looks after the folder itself.
    wait
    exit
fi
kill -KILL "$server" $(cat "/proc/$server/task/$server/children" || pgrep -P "$server")
wait
rm -rf "$folder"
