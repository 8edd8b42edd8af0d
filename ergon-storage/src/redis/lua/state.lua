-- What one call works with: rows read once and written once, index changes and counts gathered until the end.
--
-- KEYS[1] is the prefix with its hash tag, `{name}:`; every key is made from it, by `key` alone.
--
--   meta       hash   schema, the last flow's number, the last lane's number
--   ids        zset   every flow's id, scored by its number: the order of acceptance
--   lanes      hash   queue, type and version: the lane's number and the priorities it has seen
--   counts     hash   lane:state: how many flows
--   places     zset   workers that flows are or were bound to, by when they were heard of
--   asks       hash   what such a worker asks for: since when no more than now, the names of the lanes
--   kept       hash   flows that are due and kept for their workers: since when, what they are filed under, the worker
--   b:WORKER   zset   flows that are kept for a worker, by since when they are due
--   q:L:P      zset   scheduled flows of lane L and priority P, by when they are due
--   w:L:P      zset   running and suspended ones that become due by themselves
--   fin:L      zset   flows of lane L that have ended, by when
--   s:L        hash   flows of lane L that a build has stalled: which build
--   c:ID       zset   flows that name flow ID as their parent
--   a:N=V      zset   flows with the label N and the value V, by their numbers
--   f:N        string what a step needs of flow N, as `HOT`
--   g:N        string the rest of its row, as `COLD`
--   i:N        string its header: type, version, queue, input
--   j:N        string the same with the input of its present run, once it has begun again with another one
--   h:N        list   its records, and once it has ended its result
--   m:N n:N    zsets  its mailbox: messages by number, and their places by channel
--   k:N        set    the keys of the messages it has received
--   o:N        hash   the number of the last item of each of its feeds
--   o:N:FEED   list   the items of a feed that are kept
--
-- Instants are microseconds in doubles: exact until the year 2255, to within 32 microseconds after it.
--
-- Every string that Lua sees is hashed as a whole, so what a step handles is kept short and apart.

-- Set by `begin`: they are not there while the functions are loaded, and a global is slow to find.
local call, pack, unpack_struct, sub, byte, format, find, match, matches
local to_number, each, unpack_list, least, greatest, sort, take_out, try, guard, fail

local SCHEDULED, RUNNING, SUSPENDED, COMPLETED, FAILED, CANCELLED, STALLED = 1, 2, 3, 4, 5, 6, 7
-- As the rows keep them, a number for each answer to a commit.
local APPLIED, IS_SUSPENDED, AWAKE = 1, 2, 3
local CLEANUP_NEEDED, CLEANUP_UNDERWAY = 1, 2
local SCHEMA = 1
-- The end of the year 9999, as near as a double comes.
local TIME_MAX = 253402300799999999
-- No instant.
local NEVER = -9223372036854775808
-- Lua cannot pass more arguments than this with room to spare.
local ARGS_MAX = 4000

-- The instant of the call, and what the server's clock answered.
local prefix, now, time, argv, at
-- The rows that the leases in the arguments name, in their order, and the place of the next lease.
local leases, lease_at
local last_instant, last_text
-- The names of the indexes of due flows, without the prefix; by a number, for writing numbers is slow.
local due_keys, due_keys_amount = {}, 0
local known_digits = {}
local new_headers, run_headers
-- Items to be added to feeds, in their order, by flow.
local new_items
-- Rows as they are kept, until somebody needs their fields, and those of them that were changed as such.
local raws, dirty_raw
local rows, dirty_hot, dirty_cold, zsets, counts, lanes, changed, queue_changed, is_watched
-- What is to be appended to histories: some of the arguments, or records, by flow; how long the first kind is to be.
local push_first, push_last, push_total, pushes
-- The heartbeats that replace what records say, in their order, by flow.
local beats
-- What is to be taken out of histories, mailboxes as they are to be changed, keys of messages to be added, builds that
-- have stalled flows by lane, keys to be removed, lanes with another priority, lanes that have lost a flow.
local edits, boxes, message_keys, stalled, unlinked, new_lanes, left_lanes
-- Why a flow cannot be written to, by its number: this outlives a second attempt.
local damaged
-- The number of the operation, that of the last one whose changes are written, whether it is being written.
local index, settled, is_writing

-- Raised when an operation must not be gathered together with those before it, and when a flow was found damaged.
local APART, DAMAGED = 'apart', 'damaged'

local function key(name)
    return prefix .. name
end

-- Forgets everything that is not written.
local function reset()
    rows, dirty_hot, dirty_cold, zsets, counts, lanes, raws, dirty_raw = {}, {}, {}, {}, {}, {}, {}, {}
    push_first, push_last, push_total, pushes, edits, boxes = {}, {}, {}, {}, {}, {}
    message_keys, stalled, unlinked, new_lanes, left_lanes, new_headers, run_headers = {}, {}, {}, {}, {}, {}, {}
    new_items, beats = {}, {}
end

local function begin(keys, args)
    if not call then
        call, pack, unpack_struct = redis.call, struct.pack, struct.unpack
        sub, byte, format, find = string.sub, string.byte, string.format, string.find
        match, matches, to_number, each, unpack_list = string.match, string.gmatch, tonumber, pairs, unpack
        least, greatest, sort, take_out = math.min, math.max, table.sort, table.remove
        try, guard, fail = redis.pcall, pcall, error
    end
    prefix, argv, at = keys[1], args, 1
    reset()
    leases, lease_at, queue_changed, is_watched, changed, damaged = {}, 0, false, nil, {}, {}
    index, settled, is_writing = 0, 0, false
    if args[1] == '' then
        time = call('TIME')
        now = time[1] * 1000000 + time[2]
    else
        now, time = to_number(args[1]), ''
    end
end

-- Lets go of what a call has worked with.
local function finish_call()
    argv, leases, changed, damaged = nil
    reset()
end

-- A whole number as text. Redis and Lua write numbers with printf, so the usual ones are remembered.
local function digits(whole)
    local known = known_digits[whole]
    if not known then
        known = format('%.0f', whole)
        if whole > -1000 and whole < 1000 then
            known_digits[whole] = known
        end
    end
    return known
end

-- The next argument.
local function arg()
    at = at + 1
    return argv[at]
end

local function number()
    at = at + 1
    return to_number(argv[at])
end

-- An instant as a score or in an answer; many are alike, and formatting is slow.
local function text(instant)
    if instant ~= last_instant then
        last_instant, last_text = instant, instant == NEVER and '' or format('%.0f', instant)
    end
    return last_text
end

-- An instant some time after another.
local function after(instant, micros)
    local sum = instant + micros
    return sum < TIME_MAX and sum or TIME_MAX
end

-- The earlier of two instants, each of which may be missing.
local function earlier(a, b)
    if a == NEVER then
        return b
    end
    if b == NEVER or a <= b then
        return a
    end
    return b
end

-- Calls a command with any number of arguments, in several calls if need be.
local function call_many(command, name, args, step)
    local size = ARGS_MAX - ARGS_MAX % step
    local total = #args
    for first = 1, total, size do
        local last = first + size - 1
        if last > total then
            last = total
        end
        if name then
            call(command, name, unpack_list(args, first, last))
        else
            call(command, unpack_list(args, first, last))
        end
    end
end

-- ---- rows -------------------------------------------------------------------------------------------------

-- State, then nonce, check and epoch of the lease; the answer to the last commit, its number, records, deliveries;
-- whether a result is there, lane, priority, how many messages wait, the last one's number.
local HOT, HOT_BYTES = '>BI4I4I8BI4I4I4BI4i2I4I4', 45
-- Instants, the bytes of the header, the number of the run, the greatest number of a flow when it began, how many items
-- its code has emitted, whether it is detached, whether it has something to clean up (0 nothing, 1 something, 2 it was
-- cancelled), then texts with their lengths before them.
local COLD = '>i8i8i8i8i8i8i8I4I4I8I4BBBc0I4c0Bc0Bc0I4c0I4c0I4c0I4c0I4c0'

-- A row from what is kept; false for one that cannot be read, which hides no others.
local function decode(m, raw)
    if #raw ~= HOT_BYTES then
        return false
    end
    local state, nonce, check, epoch, answer, commit, records, deliveries, tail, lane, priority, box, last =
        unpack_struct(HOT, raw)
    if state < SCHEDULED or state > STALLED then
        return false
    end
    return {
        m = m, state = state, tail = tail, answer = answer, nonce = nonce, check = check, epoch = epoch,
        deliveries = deliveries, records = records, commit = commit, lane = lane, priority = priority, box = box,
        last = last,
    }
end

local function encode(r)
    return pack(
        HOT, r.state, r.nonce, r.check, r.epoch, r.answer, r.commit, r.records, r.deliveries, r.tail, r.lane,
        r.priority, r.box, r.last
    )
end

local function decode_cold(r, raw)
    r.due, r.created, r.start, r.started, r.finished, r.deadline, r.wake_at, r.size, r.run, r.run_number, r.emitted,
        r.detached, r.cleanup, r.id, r.worker, r.parent, r.path, r.channels, r.reason, r.build, r.again,
        r.labels = unpack_struct(COLD, raw)
    return r
end

-- What people call the flow with this number.
local function label(m)
    local number = to_number(m, 16)
    local id = number and call('ZRANGEBYSCORE', prefix .. 'ids', number, number, 'LIMIT', 0, 1)[1]
    return id and 'flow "' .. id .. '"' or 'flow number ' .. m
end

-- Refuses an operation because of what is kept of a flow.
local function refuse(m, what)
    fail(label(m) .. ': ' .. what, 0)
end

-- Reads the fields that a step does not need.
local function warm(r)
    if not r.id then
        local raw = call('GET', prefix .. 'g:' .. r.m)
        if not raw or not guard(decode_cold, r, raw) then
            refuse(r.m, 'the second part of its row cannot be read')
        end
    end
    return r
end

local function encode_cold(r)
    return pack(
        COLD, r.due, r.created, r.start, r.started, r.finished, r.deadline, r.wake_at, r.size, r.run, r.run_number,
        r.emitted, r.detached, r.cleanup, #r.id, r.id,
        #r.worker, r.worker, #r.parent, r.parent, #r.path, r.path, #r.channels, r.channels, #r.reason, r.reason,
        #r.build, r.build, #r.again, r.again, #r.labels, r.labels
    )
end

-- Reads the values of many keys; `take` gets each that is there.
local function get_many(letter, numbers, take)
    for first = 1, #numbers, ARGS_MAX do
        local last = first + ARGS_MAX - 1
        if last > #numbers then
            last = #numbers
        end
        local names, start = {}, prefix .. letter
        for index = first, last do
            names[index - first + 1] = start .. numbers[index]
        end
        local found = call('MGET', unpack_list(names))
        for index = 1, #found do
            if found[index] then
                take(numbers[first + index - 1], found[index])
            end
        end
    end
end

-- How many entries of a list are read at once at most, and how many bytes where that can be foreseen.
local PART_AMOUNT_MAX, PART_BYTES_MAX = 32, 4194304

-- Hands the entries of a list from `first`, counted from 0, to before `last` to `take`, until they have `bytes_max`
-- bytes together; answers how many bytes it was.
local function each_part(name, first, last, bytes_max, take)
    local bytes, seen, amount = 0, 0, 16
    while first < last and bytes < bytes_max do
        local some = call('LRANGE', name, digits(first), digits(least(first + amount, last) - 1))
        local got = #some
        if got == 0 then
            break
        end
        for place = 1, got do
            bytes = bytes + #some[place]
            take(some[place])
        end
        first, seen = first + got, seen + got
        -- As many as fit if they are like those before.
        amount = (least(PART_BYTES_MAX, bytes_max - bytes) * seen) / (bytes + 1)
        amount = greatest(1, least(PART_AMOUNT_MAX, amount - amount % 1))
    end
    return bytes
end

-- Reads many rows at once.
local function fetch(numbers)
    local wanted = {}
    for index = 1, #numbers do
        local m = numbers[index]
        if rows[m] == nil and raws[m] == nil then
            raws[m] = false
            wanted[#wanted + 1] = m
        end
    end
    get_many('f:', wanted, function(m, raw)
        raws[m] = raw
    end)
end

-- The row of a flow; false when there is none that can be read.
local function row(m)
    local r = rows[m]
    if r == nil then
        if damaged[m] then
            return false
        end
        local raw = raws[m]
        if raw == nil then
            raw = call('GET', prefix .. 'f:' .. m)
        end
        r = raw and decode(m, raw) or false
        rows[m] = r
        if dirty_raw[m] then
            dirty_raw[m], dirty_hot[m] = nil, r
        end
    end
    return r
end

-- Reads the other parts of many rows at once. A row without one that can be read is none.
local function fetch_cold(numbers)
    local wanted = {}
    for index = 1, #numbers do
        local m = numbers[index]
        local r = row(m)
        if r and not r.id then
            wanted[#wanted + 1] = m
        end
    end
    local amount = 0
    local is_read = guard(get_many, 'g:', wanted, function(m, raw)
        decode_cold(rows[m], raw)
        amount = amount + 1
    end)
    if is_read and amount == #wanted then
        return
    end
    -- Each by itself, for some cannot be read.
    get_many('g:', wanted, function(m, raw)
        guard(decode_cold, rows[m], raw)
    end)
    for index = 1, #wanted do
        local m = wanted[index]
        if not rows[m].id then
            rows[m] = false
        end
    end
end

-- A step has changed the row.
local function touch(r)
    dirty_hot[r.m] = r
end

local function name_of(flow_number)
    return format('%011x', flow_number)
end

-- The number of the flow with this id, as keys have it; nil when there is none.
local function number_of(id)
    local members = zsets.ids
    local score = members and members[id]
    if score == nil then
        score = call('ZSCORE', prefix .. 'ids', id)
    end
    return score and name_of(to_number(score)) or nil
end

-- The row of the flow with this id; nil when there is none.
local function find_id(id)
    local m = number_of(id)
    if m then
        local r = row(m)
        if not r then
            refuse(m, damaged[m] or 'its row cannot be read')
        end
        return r
    end
end

-- ---- indexes ----------------------------------------------------------------------------------------------

local function zset(name)
    local members = zsets[name]
    if not members then
        members = {}
        zsets[name] = members
    end
    return members
end

-- The builds that have stalled flows of a lane, as they are to be changed.
local function stalled_of(lane)
    local builds = stalled[lane]
    if not builds then
        builds = {}
        stalled[lane] = builds
    end
    return builds
end

local function count(r, by)
    local field = r.lane * 8 + r.state
    counts[field] = (counts[field] or 0) + by
end

local function due_key(r)
    local is_scheduled = r.state == SCHEDULED
    local place = (r.lane * 65536 + r.priority) * 2 + (is_scheduled and 1 or 0)
    local name = due_keys[place]
    if not name then
        if due_keys_amount == 10000 then
            due_keys, due_keys_amount = {}, 0
        end
        name = (is_scheduled and 'q:' or 'w:') .. r.lane .. ':' .. r.priority
        due_keys[place], due_keys_amount = name, due_keys_amount + 1
    end
    return name
end

local function add_to_index(r)
    local state = r.state
    count(r, 1)
    if state <= SUSPENDED then
        if r.due ~= NEVER then
            zset(due_key(r))[r.m] = text(r.due)
        end
    elseif state == STALLED then
        if r.build ~= '' then
            stalled_of(r.lane)[r.m] = r.build
        end
    else
        zset('fin:' .. r.lane)[r.m] = text(r.finished)
    end
end

local function take_from_index(r)
    local state = r.state
    count(r, -1)
    if state <= SUSPENDED then
        if r.due ~= NEVER then
            zset(due_key(r))[r.m] = false
        end
    elseif state == STALLED then
        if r.build ~= '' then
            stalled_of(r.lane)[r.m] = false
        end
    else
        zset('fin:' .. r.lane)[r.m] = false
    end
end

-- Something about a flow has changed. Only a call that somebody might hear remembers which.
local function hint_flow(r)
    if is_watched == nil then
        local listeners = try('PUBSUB', 'NUMSUB', prefix .. 'flows')[2]
        is_watched = listeners ~= nil and listeners > 0
    end
    if is_watched then
        changed[#changed + 1] = warm(r).id
    end
end

-- Lists a flow by these labels, or takes it out of their lists.
local function list_labels(r, lines, is_listed)
    for line in matches(lines, '[^\n]+') do
        zset('a:' .. line)[r.m] = is_listed and digits(to_number(r.m, 16))
    end
end

-- Raises when another program has the key of a label's list: before anything is written.
local function check_labels(lines)
    for line in matches(lines, '[^\n]+') do
        call('ZCARD', prefix .. 'a:' .. line)
    end
end

-- Puts a flow into a state in which it waits for nothing.
local function set(r, state, due, reason)
    warm(r)
    take_from_index(r)
    r.state, r.due, r.reason, r.wake_at, r.channels, r.build, r.again = state, due, reason or '', NEVER, '', '', ''
end

-- A flow has come to its state.
local function done(r)
    add_to_index(r)
    hint_flow(r)
    if r.due ~= NEVER and r.state ~= RUNNING then
        queue_changed = true
    end
    dirty_hot[r.m], dirty_cold[r.m] = r, r
end

-- The lane of this name, with this priority among those it has seen.
local function lane_of(name, priority)
    local lane = lanes[name]
    if not lane then
        local known = call('HGET', prefix .. 'lanes', name)
        if not known then
            known = call('HINCRBY', prefix .. 'meta', 'lanes', 1) .. ''
        end
        lane = { number = to_number(match(known, '^%d+')), known = known, priorities = {} }
        lanes[name] = lane
    end
    if not lane.priorities[priority] then
        lane.priorities[priority] = true
        if not find(lane.known .. ' ', ' ' .. priority .. ' ', 1, true) then
            lane.known = lane.known .. ' ' .. priority
            new_lanes[name] = lane.known
        end
    end
    return lane.number
end

-- Adds a record to a history; after all that is added in the same way.
local function push(r, record)
    local m = r.m
    local list = pushes[m]
    if not list then
        list = push_first[m] and { unpack_list(argv, push_first[m], push_last[m] or push_first[m]) } or {}
        push_first[m], push_last[m], pushes[m] = nil, nil, list
    end
    list[#list + 1] = record
end

-- Writes what has been gathered, or nothing of it: then it raises why.
local flush
-- Lua allows so many names at once.
do
    -- Appends some of a list, or of the arguments, to a history that is to have `total` entries then. What is in it beyond
    -- its row is no part of it and goes; answers nil, and leaves no trace, when there is less.
    local function append(m, list, first, last, total)
        local name, amount, length = prefix .. 'h:' .. m, last - first + 1, nil
        if amount < ARGS_MAX then
            length = try('RPUSH', name, unpack_list(list, first, last))
        else
            length = try('LLEN', name)
            if length == total - amount then
                call_many('RPUSH', name, list, 1)
                length = total
            elseif to_number(length) then
                length = length + amount
            end
        end
        if length == total then
            return true
        end
        if not to_number(length) then
            damaged[m] = 'its history is no list'
            return
        end
        if amount < ARGS_MAX then
            call('RPOP', name, digits(amount))
        end
        if length < total then
            damaged[m] = 'its history has ' .. digits(length - amount) .. ' entries, by its row ' .. digits(total - amount)
            return
        end
        if total == amount then
            call('UNLINK', name)
        else
            call('LTRIM', name, '0', digits(total - amount - 1))
        end
        return append(m, list, first, last, total)
    end

    -- Writes what a damaged key can refuse. Answers false, having left no trace, when one has: its flow is damaged then.
    local function add_parts()
        local filled, keyed, bad = {}, {}, nil
        local start = prefix .. 'h:'
        for m, first in each(push_first) do
            local last = push_last[m] or first
            -- Most steps are one record, and as they should be.
            local length = first == last and try('RPUSH', start .. m, argv[first])
            if length ~= push_total[m] then
                if to_number(length) then
                    call('RPOP', start .. m)
                end
                if not append(m, argv, first, last, push_total[m]) then
                    bad = m
                    break
                end
            end
        end
        if not bad then
            for m, list in each(pushes) do
                local r = rows[m]
                if not append(m, list, 1, #list, r.records + r.tail) then
                    bad = m
                    break
                end
            end
        end
        if not bad then
            for m, box in each(boxes) do
                local bodies, spots = {}, {}
                for place = 1, #box do
                    local new = box[place]
                    if not box.removed[new.seq] then
                        bodies[#bodies + 1], bodies[#bodies + 2] = new.seq, new.body
                        spots[#spots + 1], spots[#spots + 2] = 0, new.spot
                    end
                end
                if bodies[1] and not box.cleared then
                    filled[#filled + 1] = m
                    if not guard(call_many, 'ZADD', prefix .. 'm:' .. m, bodies, 2)
                        or not guard(call_many, 'ZADD', prefix .. 'n:' .. m, spots, 2) then
                        damaged[m], bad = 'its mailbox cannot be written to', ''
                        break
                    end
                end
            end
        end
        if not bad then
            for m, new in each(message_keys) do
                local list = {}
                for message_key in each(new) do
                    list[#list + 1] = message_key
                end
                keyed[#keyed + 1] = m
                if not guard(call_many, 'SADD', prefix .. 'k:' .. m, list, 1) then
                    damaged[m], bad = 'the keys of its messages cannot be written to', ''
                    break
                end
            end
        end
        if not bad then
            return true
        end
        -- In the same order as above, up to the one that has refused.
        for m, first in each(push_first) do
            if m == bad then
                return false
            end
            call('RPOP', start .. m, digits((push_last[m] or first) - first + 1))
        end
        for m, list in each(pushes) do
            if m == bad then
                return false
            end
            call('RPOP', start .. m, digits(#list))
        end
        for place = 1, #filled do
            local m = filled[place]
            local box = boxes[m]
            for entry = 1, #box do
                try('ZREM', prefix .. 'm:' .. m, box[entry].body)
                try('ZREM', prefix .. 'n:' .. m, box[entry].spot)
            end
        end
        for place = 1, #keyed do
            local m = keyed[place]
            for message_key in each(message_keys[m]) do
                try('SREM', prefix .. 'k:' .. m, message_key)
            end
        end
        return false
    end

    -- A record with the instant and the payload of a heartbeat: as `put_record` and `put_beat` in wire.rs write them.
    local function with_beat(record, beat)
        local instant = 16 + byte(record, 3)
        local name = instant + 17
        local flags = byte(record, name - 1)
        if flags % 2 == 1 then
            name = name + 8
        end
        if flags >= 2 then
            local length = unpack_struct('>I4', record, name)
            name = name + 4 + length
        end
        return sub(record, 1, instant - 1) .. sub(beat, 5, 12) .. sub(record, instant + 8, name + byte(record, name))
            .. sub(beat, 13)
    end

    -- Takes out of mailboxes and histories what is to go, and removes keys.
    local function take_parts()
        for m, box in each(boxes) do
            if not box.cleared then
                for seq, spot in each(box.removed) do
                    try('ZREMRANGEBYSCORE', prefix .. 'm:' .. m, seq, seq)
                    try('ZREM', prefix .. 'n:' .. m, spot)
                end
            end
        end
        for m, list in each(beats) do
            local name = prefix .. 'h:' .. m
            for place = 1, #list do
                local spot = digits(unpack_struct('>I4', list[place]) - 1)
                local record = try('LINDEX', name, spot)
                -- A history that something else has the key of is no other's trouble.
                local is_read, changed_record = guard(with_beat, record, list[place])
                if is_read then
                    try('LSET', name, spot, changed_record)
                end
            end
        end
        for m, edit in each(edits) do
            local name = prefix .. 'h:' .. m
            if edit.has_tail then
                call('RPOP', name)
            end
            if edit.keep == 0 then
                call('UNLINK', name)
            elseif edit.keep then
                call('LTRIM', name, '0', digits(edit.keep - 1))
            end
            -- No record is empty.
            for place = 1, #edit do
                call('LSET', name, edit[place], '')
            end
            if edit[1] then
                call('LREM', name, 0, '')
            end
        end
        for m, all in each(new_items) do
            local name, last = prefix .. 'o:' .. m, {}
            for place = 1, #all do
                local new = all[place]
                -- A feed that something else has the key of is no other's trouble.
                try('RPUSH', name .. ':' .. new.feed, new.body)
                if new.is_last then
                    try('LTRIM', name .. ':' .. new.feed, -1, -1)
                end
                last[new.feed] = new.seq
            end
            for feed, seq in each(last) do
                try('HSET', name, feed, digits(seq))
            end
        end
        if unlinked[1] then
            call_many('UNLINK', nil, unlinked, 1)
        end
        for lane, builds in each(stalled) do
            for m, build in each(builds) do
                if build then
                    call('HSET', prefix .. 's:' .. lane, m, build)
                else
                    call('HDEL', prefix .. 's:' .. lane, m)
                end
            end
        end
    end

    -- Forgets the lanes that have lost their last flow.
    local function forget_lanes()
        local names
        for lane in each(left_lanes) do
            local left = call(
                'HMGET', prefix .. 'counts', lane .. ':1', lane .. ':2', lane .. ':3', lane .. ':4', lane .. ':5',
                lane .. ':6', lane .. ':7'
            )
            local is_empty = true
            for place = 1, 7 do
                is_empty = is_empty and not left[place]
            end
            if is_empty then
                if not names then
                    names = {}
                    local known = call('HGETALL', prefix .. 'lanes')
                    for place = 1, #known, 2 do
                        names[to_number(match(known[place + 1], '^%d+'))] = known[place]
                    end
                end
                if names[lane] then
                    call('HDEL', prefix .. 'lanes', names[lane])
                    lanes[names[lane]] = nil
                end
            end
        end
    end

    flush = function()
        if not add_parts() then
            fail(DAMAGED, 0)
        end
        is_writing = true
        local values, size = {}, 0
        local start = prefix .. 'f:'
        for m, r in each(dirty_hot) do
            values[size + 1], values[size + 2], size = start .. m, r.hot_bytes or encode(r), size + 2
            r.hot_bytes = nil
        end
        for m, raw in each(dirty_raw) do
            values[size + 1], values[size + 2], size = start .. m, raw, size + 2
            raws[m] = raw
        end
        start = prefix .. 'g:'
        for m, r in each(dirty_cold) do
            values[size + 1], values[size + 2], size = start .. m, r.cold_bytes or encode_cold(r), size + 2
            r.cold_bytes = nil
        end
        start = prefix .. 'i:'
        for m, header in each(new_headers) do
            values[size + 1], values[size + 2], size = start .. m, header, size + 2
        end
        start = prefix .. 'j:'
        for m, header in each(run_headers) do
            values[size + 1], values[size + 2], size = start .. m, header, size + 2
        end
        if size > 0 then
            call_many('MSET', nil, values, 2)
        end
        take_parts()
        for name, known in each(new_lanes) do
            call('HSET', prefix .. 'lanes', name, known)
        end
        for name, members in each(zsets) do
            local added, removed = {}, {}
            for m, score in each(members) do
                if score then
                    added[#added + 1] = score
                    added[#added + 1] = m
                else
                    removed[#removed + 1] = m
                end
            end
            call_many('ZADD', prefix .. name, added, 2)
            call_many('ZREM', prefix .. name, removed, 1)
        end
        for place, by in each(counts) do
            if by ~= 0 then
                local state = place % 8
                local field = digits((place - state) / 8) .. ':' .. digits(state)
                if call('HINCRBY', prefix .. 'counts', field, digits(by)) == 0 then
                    call('HDEL', prefix .. 'counts', field)
                end
            end
        end
        forget_lanes()
        dirty_hot, dirty_raw, dirty_cold, zsets, counts, new_headers, left_lanes = {}, {}, {}, {}, {}, {}, {}
        run_headers, new_items, beats = {}, {}, {}
        push_first, push_last, push_total, pushes, edits, boxes = {}, {}, {}, {}, {}, {}
        message_keys, stalled, unlinked, new_lanes = {}, {}, {}, {}
        is_writing = false
    end
end

-- Writes the changes of all operations before this one. Whatever becomes of it, they stay.
local function settle()
    flush()
    settled = index - 1
end

-- Writes the changes of this operation, too: it is not tried again.
local function settle_this()
    flush()
    settled = index
end

-- Tells whoever listens. Only flows that somebody watches are named.
local function publish()
    if queue_changed then
        try('PUBLISH', prefix .. 'queue', '')
    end
    if not changed[1] then
        return
    end
    local seen, channels = {}, {}
    for index = 1, #changed do
        local id = changed[index]
        if not seen[id] then
            seen[id] = true
            channels[#channels + 1] = prefix .. 'flow:' .. id
        end
    end
    for first = 1, #channels, ARGS_MAX do
        local last = first + ARGS_MAX - 1
        if last > #channels then
            last = #channels
        end
        -- What is written stays, whether or not somebody hears of it.
        local listeners = try('PUBSUB', 'NUMSUB', unpack_list(channels, first, last))
        for index = 1, #listeners, 2 do
            if listeners[index + 1] > 0 then
                try('PUBLISH', listeners[index], '')
            end
        end
    end
end
