-- Accepting flows, leasing them, giving them back.

-- How a new flow's numbers come: its check, priority, when it starts (0 now, 1 at, 2 after), that instant or time, its
-- time limit or -1, whether it is detached.
local NEW_FLOW = '>I4i2Bi8i8B'

-- The row of a flow as it comes in the arguments, without its number and lane.
local function new_flow()
    local check, priority, start_kind, start, timeout, detached = unpack_struct(NEW_FLOW, arg())
    if start_kind == 0 then
        start = now
    elseif start_kind == 2 then
        start = after(now, start)
    end
    local id, lane_name, parent, path, labels = argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4], argv[at + 5]
    local header = argv[at + 6]
    at = at + 6
    return {
        m = '', state = SCHEDULED, tail = 0, answer = 0, nonce = 0, check = check, epoch = 0, deliveries = 0,
        records = 0, commit = 0, lane = 0, priority = priority, box = 0, last = 0, due = start, created = now,
        start = start, started = NEVER, finished = NEVER,
        deadline = timeout < 0 and NEVER or after(greatest(start, now), timeout), wake_at = NEVER,
        detached = detached, id = id, worker = '', parent = parent, path = path, channels = '', reason = '',
        build = '', again = '', labels = labels, size = #header, run = 1, run_number = 0, emitted = 0, cleanup = 0,
        lane_name = lane_name, header = header,
    }
end

-- Accepts a flow under this number; its id must be free.
local function insert(r, flow_number)
    local m = name_of(flow_number)
    r.m, r.lane = m, lane_of(r.lane_name, r.priority)
    if r.parent ~= '' then
        -- Another program's key is found before anything is written.
        call('ZCARD', prefix .. 'c:' .. r.parent)
        zset('c:' .. r.parent)[m] = digits(flow_number)
    end
    if r.labels ~= '' then
        check_labels(r.labels)
        list_labels(r, r.labels, true)
    end
    rows[m], raws[m], new_headers[m] = r, false, r.header
    zset('ids')[r.id] = digits(flow_number)
    done(r)
end

-- Numbers that no flow has had; the first of them.
local function take_numbers(amount)
    local last = call('HINCRBY', prefix .. 'meta', 'last', digits(amount))
    if last == amount then
        call('HSET', prefix .. 'meta', 'schema', SCHEMA)
    end
    return last - amount + 1
end

-- True when two headers name the same type, of whatever version, and the same input.
local function is_same(a, b)
    local type_a, type_b = byte(a, 1), byte(b, 1)
    if sub(a, 1, type_a + 1) ~= sub(b, 1, type_b + 1) then
        return false
    end
    local queue_a, queue_b = byte(a, type_a + 6), byte(b, type_b + 6)
    return sub(a, type_a + queue_a + 7) == sub(b, type_b + queue_b + 7)
end

local function header_of(m)
    return new_headers[m] or call('GET', prefix .. 'i:' .. m)
end

-- The header of the present run.
local function run_header_of(r)
    if warm(r).run == 1 then
        return header_of(r.m)
    end
    return run_headers[r.m] or call('GET', prefix .. 'j:' .. r.m)
end

-- True when two headers name the same type and version, and the same input.
local function is_what_is_wanted(a, b)
    local type_end = byte(a, 1) + 5
    return sub(a, 1, type_end) == sub(b, 1, type_end) and is_same(a, b)
end

local function enqueue()
    local amount = number()
    local flows, ids, taken = {}, {}, {}
    for place = 1, amount do
        flows[place] = new_flow()
        ids[place] = flows[place].id
    end
    for first = 1, amount, ARGS_MAX do
        local found = call('ZMSCORE', prefix .. 'ids', unpack_list(ids, first, least(first + ARGS_MAX - 1, amount)))
        for place = 1, #found do
            taken[first + place - 1] = found[place]
        end
    end
    local answers, new, next_number = {}, zset('ids'), take_numbers(amount)
    for place = 1, amount do
        local id = ids[place]
        -- What this call has changed already.
        local flow_number = new[id]
        if flow_number == nil then
            flow_number = taken[place]
        end
        if flow_number then
            local header = header_of(name_of(to_number(flow_number)))
            -- Without its header, nobody can say that it is the same.
            answers[place] = header and is_same(header, flows[place].header) and 1 or 2
        else
            insert(flows[place], next_number)
            answers[place] = 0
            next_number = next_number + 1
        end
    end
    return answers
end

local bindings = {}
do
    -- How long a worker must not have been heard of for a flow that never moves to count as abandoned; how exactly it is
    -- known when one was heard of; after what time without a word workers are forgotten, and how many at once.
    local ABANDONED_AFTER, HEARD_STEP, FORGOTTEN_AFTER, FORGOTTEN_MAX = 60000000, 1000000, 2592000000000, 1000

    -- What binds a flow: 'prefer' or 'require', and for how many microseconds or 'never'; nil when nothing does.
    local function binding(r)
        if r.labels == '' then
            return
        end
        local lines = '\n' .. r.labels
        local kind, time = match(lines, '\nergon%.session=(%l+) (%w+)')
        if not kind then
            kind, time = match(lines, '\nergon%.affinity=(%l+) (%w+)')
        end
        return kind, time
    end

    -- Takes note that a worker was heard of, if it is a place or was heard of before; answers whether it was.
    bindings.hear = function(worker, is_place)
        local before = call('ZSCORE', prefix .. 'places', worker)
        if not before and is_place then
            local gone = call(
                'ZRANGEBYSCORE', prefix .. 'places', '-inf', text(now - FORGOTTEN_AFTER), 'LIMIT', 0, FORGOTTEN_MAX
            )
            call_many('ZREM', prefix .. 'places', gone, 1)
            call_many('HDEL', prefix .. 'asks', gone, 1)
        end
        if before and now >= before + HEARD_STEP or not before and is_place then
            call('ZADD', prefix .. 'places', text(now), worker)
        end
        return is_place or before and true
    end

    -- The names of lanes in an order of their own, each with its length before it.
    local function listed(lane_names)
        local names = {}
        for place = 1, #lane_names do
            names[place] = pack('>I2', #lane_names[place]) .. lane_names[place]
        end
        sort(names)
        return table.concat(names)
    end

    -- Hands the names of such a list to `take`.
    local function each_listed(list, take)
        local from = 1
        while from < #list do
            local size = unpack_struct('>I2', list, from)
            take(sub(list, from + 2, from + 1 + size))
            from = from + 2 + size
        end
    end

    -- Takes note of what a worker asks for that is a place.
    bindings.asks_for = function(worker, lane_names)
        local list, known, since = listed(lane_names), call('HGET', prefix .. 'asks', worker), now
        if known then
            if sub(known, 9) == list then
                return
            end
            local asked_for, is_less = {}, false
            for place = 1, #lane_names do
                asked_for[lane_names[place]] = true
            end
            each_listed(sub(known, 9), function(name) is_less = is_less or not asked_for[name] end)
            since = is_less and now or unpack_struct('>i8', known)
        end
        call('HSET', prefix .. 'asks', worker, pack('>i8', since) .. list)
    end

    -- When a worker was heard of as one that asks for such flows; nil when it never was heard of.
    local function heard_at(worker, r)
        local heard = call('ZSCORE', prefix .. 'places', worker)
        heard = heard and to_number(heard) or nil
        local known = heard and call('HGET', prefix .. 'asks', worker)
        if not known then
            return heard
        end
        -- Its type, version and queue, without its input.
        local header, asks_for_it = call('GETRANGE', prefix .. 'i:' .. r.m, 0, 300), false
        local type_end = (byte(header, 1) or 0) + 5
        local queue = sub(header, type_end + 1, type_end + 1 + (byte(header, type_end + 1) or 0))
        local name = queue .. sub(header, 1, type_end)
        each_listed(sub(known, 9), function(asked_for) asks_for_it = asks_for_it or asked_for == name end)
        return asks_for_it and heard or least(heard, (unpack_struct('>i8', known)))
    end

    local function forget(m)
        local kept = call('HGET', prefix .. 'kept', m)
        if kept then
            call('HDEL', prefix .. 'kept', m)
            call('ZREM', prefix .. 'b:' .. sub(kept, 17), m)
        end
    end
    bindings.forget = forget

    local function file(r, due)
        r.due = due
        zset(due_key(r))[r.m] = text(due)
        dirty_cold[r.m] = r
        queue_changed = true
    end

    -- Keeps a flow that is due for the worker that it is bound to, if that is another one; answers whether it does.
    bindings.keep = function(r, worker)
        local kind, time = binding(r)
        if not kind or r.worker == '' or r.worker == worker then
            return false
        end
        local due, kept, is_kept = r.due, call('HGET', prefix .. 'kept', r.m), false
        if kept then
            -- Since when it is due, what it is filed under, the worker.
            local since, filed = unpack_struct('>i8i8', kept)
            is_kept = filed == r.due
            due = is_kept and since or due
        end
        local known = heard_at(r.worker, r)
        -- A worker that is not known counts from now on. If the flow was kept for it, it has not asked since that was due.
        local heard, till = known or is_kept and due or now, nil
        if kind == 'prefer' then
            till = after(due, to_number(time))
        elseif time ~= 'never' then
            till = after(heard, to_number(time))
        elseif heard + ABANDONED_AFTER > now then
            till = after(heard, ABANDONED_AFTER)
        else
            till = TIME_MAX
        end
        -- What cleans up has no time limit.
        if r.deadline ~= NEVER and r.cleanup ~= CLEANUP_UNDERWAY then
            till = least(till, r.deadline)
        end
        if till <= now then
            return false
        end
        if kind == 'require' and not known and not is_kept then
            bindings.hear(r.worker, true)
        end
        forget(r.m)
        call('HSET', prefix .. 'kept', r.m, pack('>i8i8', due, till) .. r.worker)
        call('ZADD', prefix .. 'b:' .. r.worker, text(due), r.m)
        file(r, till)
        return true
    end

    -- Makes flows claimable that are kept for a worker, so many at most: those of these lanes, or this one.
    bindings.bring_back = function(worker, limit, lane_names, single)
        if limit == 0 or call('EXISTS', prefix .. 'b:' .. worker) == 0 then
            return
        end
        local wanted, from, done_with = {}, 0, {}
        for index = 1, #lane_names do
            local known = call('HGET', prefix .. 'lanes', lane_names[index])
            if known then
                wanted[to_number(match(known, '^%d+'))] = true
            end
        end
        repeat
            local page = call('ZRANGE', prefix .. 'b:' .. worker, digits(from), digits(from + 99))
            for place = 1, #page do
                if limit == 0 then
                    break
                end
                local m = page[place]
                local kept, r = call('HGET', prefix .. 'kept', m), row(m)
                local since, filed = 0, NEVER
                if kept then
                    since, filed = unpack_struct('>i8i8', kept)
                end
                if not r or not guard(warm, r) or r.state > SUSPENDED or r.due ~= filed or r.worker ~= worker then
                    done_with[#done_with + 1] = m
                elseif r.m == single or wanted[r.lane] then
                    file(r, since)
                    done_with[#done_with + 1] = m
                    limit = limit - 1
                end
            end
            from = from + #page
        until limit == 0 or #page < 100
        -- Only when they are claimable are they kept no more.
        settle_this()
        for place = 1, #done_with do
            forget(done_with[place])
        end
    end

    -- A flow is leased to a worker.
    bindings.leased = function(r, worker)
        if r.labels ~= '' then
            if binding(r) == 'require' then
                bindings.hear(worker, true)
            end
            forget(r.m)
        end
    end
end

local claim
do
    -- The priorities of these lanes, highest first, each with the names of its indexes.
    local function sources(names)
        local by_priority, priorities, all = {}, {}, {}
        for index = 1, #names do
            local known = call('HGET', prefix .. 'lanes', names[index])
            if known then
                local lane
                for word in matches(known, '%S+') do
                    if lane then
                        local priority = to_number(word)
                        local group = by_priority[priority]
                        if not group then
                            group = {}
                            by_priority[priority] = group
                            priorities[#priorities + 1] = priority
                        end
                        local suffix = lane .. ':' .. word
                        group[#group + 1] = { short = 'q:' .. suffix, name = prefix .. 'q:' .. suffix, passed = 0 }
                        group[#group + 1] = { short = 'w:' .. suffix, name = prefix .. 'w:' .. suffix, passed = 0 }
                        all[#all + 1] = group[#group - 1].name
                        all[#all + 1] = group[#group].name
                    else
                        lane = word
                    end
                end
            end
        end
        sort(priorities, function(a, b) return a > b end)
        local groups = {}
        for index = 1, #priorities do
            groups[index] = by_priority[priorities[index]]
        end
        return groups, all
    end

    local function is_before(a, b)
        if a.score ~= b.score then
            return a.score < b.score
        end
        return a.m < b.m
    end

    -- How many flows one claim looks at beyond those that it takes: what stays due is claimed next. Those that it keeps for
    -- others are behind what is due by then.
    local PASSED_MAX = 1000
    -- For how long a flow whose row cannot be read is left alone.
    local POSTPONED = 60000000

    -- Hands every due flow of a group to `take`, in the order in which they are claimed, while that wants more; those that
    -- cannot be read go to `pass_over`. Answers how many were not to be had, with those before.
    local function each_due(group, wanted, take, pass_over, passed)
        local live = {}
        for place = 1, #group do
            if call('ZCOUNT', group[place].name, '-inf', text(now)) > 0 then
                live[#live + 1] = group[place]
            end
        end
        local more = #live > 0
        while more and wanted() > 0 and passed < PASSED_MAX do
            -- More where those before were not to be had.
            local page = least(wanted() + least(passed, PASSED_MAX - passed), 1000)
            local numbers, from, last = {}, {}, 0
            if #live == 1 then
                numbers = call(
                        'ZRANGEBYSCORE', live[1].name, '-inf', text(now), 'LIMIT', digits(live[1].passed), digits(page)
                    )
                last = #numbers
                more = last == page
            else
                local found = {}
                more = false
                for place = 1, #live do
                    local source = live[place]
                    local part = call(
                        'ZRANGEBYSCORE', source.name, '-inf', text(now), 'WITHSCORES', 'LIMIT', digits(source.passed),
                            digits(page)
                    )
                    more = more or #part == 2 * page
                    for entry = 1, #part, 2 do
                        found[#found + 1] = { m = part[entry], score = to_number(part[entry + 1]), source = source }
                    end
                end
                sort(found, is_before)
                -- The first of all are among the first of each.
                last = least(#found, page)
                more = more or #found > last
                for place = 1, last do
                    numbers[place], from[place] = found[place].m, found[place].source
                end
            end
            fetch(numbers)
            fetch_cold(numbers)
            for place = 1, last do
                local before = wanted()
                if before <= 0 then
                    return passed
                end
                local source = from[place] or live[1]
                source.passed = source.passed + 1
                local r = row(numbers[place])
                if r then
                    take(r)
                else
                    pass_over(numbers[place], source.short)
                end
                passed = passed + (wanted() == before and 1 or 0)
            end
        end
        return passed
    end

    -- How many bytes of a history and of a mailbox a claim answers with, and of all flows together, as far as one flow
    -- does not exceed that by itself.
    local FLOW_BYTES_MAX, CLAIM_BYTES_MAX = 1048576, 8388608

    -- The first messages of a mailbox, and their bytes.
    local function first_messages(r, limit)
        local messages, bytes, last, amount = {}, 0, 0, 16
        while #messages < limit and bytes < FLOW_BYTES_MAX do
            local some = call(
                'ZRANGEBYSCORE', prefix .. 'm:' .. r.m, '(' .. digits(last), '+inf', 'LIMIT', 0,
                least(amount, limit - #messages)
            )
            for place = 1, #some do
                messages[#messages + 1], bytes = some[place], bytes + #some[place]
            end
            if #some < amount then
                break
            end
            last = unpack_struct('>I4', some[#some])
        end
        return messages, bytes
    end

    -- The beginning of a history and of a mailbox, and their bytes.
    local function beginning(r, history_max, messages_max)
        local history, messages, bytes = {}, {}, 0
        local wanted = least(r.records, history_max)
        if wanted > 0 then
            bytes = each_part(prefix .. 'h:' .. r.m, 0, wanted, FLOW_BYTES_MAX, function(record)
                history[#history + 1] = record
            end)
            if #history < wanted and bytes < FLOW_BYTES_MAX then
                fail('the history has ' .. #history .. ' entries, by the row ' .. digits(r.records), 0)
            end
        end
        if r.box > 0 and messages_max > 0 then
            local more
            messages, more = first_messages(r, messages_max)
            bytes = bytes + more
        end
        return history, messages, bytes
    end

    claim = function()
        settle()
        local worker, nonce, lease, deliveries_max, is_place = arg(), number(), number(), number(), number() == 1
        local history_max, messages_max, limit = number(), number(), number()
        local single, names = arg(), {}
        for place = 1, number() do
            names[place] = arg()
        end
        if single ~= '' then
            single = find_id(single)
        end
        bindings.hear(worker, is_place)
        if is_place and single == '' then
            bindings.asks_for(worker, names)
        end
        bindings.bring_back(worker, limit, names, single and single ~= '' and single.m)
        local lease_end = after(now, lease)
        local flows, claimed, by_number, bytes, is_full, unreadable = {}, {}, {}, 0, false, {}

        local function stall(r, reason)
            r.hot_bytes, r.cold_bytes = nil, nil
            set(r, STALLED, NEVER, reason)
            done(r)
        end
        local function take(r)
            if r.labels ~= '' and bindings.keep(r, worker) then
                return
            end
            if r.deliveries >= deliveries_max then
                stall(r)
                return
            end
            if flows[1] and bytes + r.size > CLAIM_BYTES_MAX then
                is_full = true
                return
            end
            local history, messages, more = {}, {}, 0
            if r.records > 0 or r.box > 0 then
                local is_read, first, second, third = guard(beginning, r, history_max, messages_max)
                if not is_read then
                    stall(r, 'what is kept of it cannot be read: ' .. (first.err or first) .. '; mend it and retry')
                    return
                end
                history, messages, more = first, second, third
            end
            set(r, RUNNING, lease_end)
            r.commit, r.answer = 0, 0
            if r.started == NEVER then
                r.started = now
            end
            r.epoch, r.nonce, r.deliveries, r.worker = r.epoch + 1, nonce, r.deliveries + 1, worker
            bindings.leased(r, worker)
            done(r)
            r.hot_bytes, r.cold_bytes = encode(r), encode_cold(r)
            bytes = bytes + r.size + more
            local amount = #flows + 1
            local answer = { r.m, r.hot_bytes, r.cold_bytes, false, history, messages }
            claimed[amount], flows[amount], by_number[r.m] = r.m, answer, answer
        end
        local function wanted()
            return bytes < CLAIM_BYTES_MAX and not is_full and limit - #flows or 0
        end
        local function pass_over(m, source)
            unreadable[#unreadable + 1] = label(m)
            zset(source)[m] = text(after(now, POSTPONED))
        end

        local groups, all = {}, {}
        if single ~= '' then
            if single and warm(single).due ~= NEVER and single.due <= now and limit > 0 then
                take(single)
            end
        else
            groups, all = sources(names)
            local passed = 0
            for place = 1, #groups do
                passed = each_due(groups[place], wanted, take, pass_over, passed)
            end
        end
        local found = 0
        local in_first_run, in_later_run = {}, {}
        for place = 1, #claimed do
            local those = rows[claimed[place]].run == 1 and in_first_run or in_later_run
            those[#those + 1] = claimed[place]
        end
        local function take_header(m, header)
            found = found + 1
            by_number[m][4] = header
        end
        get_many('i:', in_first_run, take_header)
        get_many('j:', in_later_run, take_header)
        local answers = flows
        if found < #flows then
            answers = {}
            for place = 1, #flows do
                if flows[place][4] then
                    answers[#answers + 1] = flows[place]
                else
                    stall(rows[claimed[place]], 'what is kept of it cannot be read: its header is gone; mend it and retry')
                end
            end
        end
        settle_this()
        local next_due = NEVER
        if single and single ~= '' then
            next_due = single.due
        end
        for place = 1, #all do
            local first = try('ZRANGE', all[place], '0', '0', 'WITHSCORES')
            if first[1] then
                next_due = earlier(next_due, to_number(first[2]))
            end
        end
        return { text(next_due), answers, unreadable, bindings.hear(worker, false) and 1 or 0 }
    end
end

-- The number of the flow that the next lease is for.
local function next_leased()
    lease_at = lease_at + 1
    return leases[lease_at]
end

-- How the numbers of a lease come: nonce, check, epoch.
local LEASE = '>I4I4I8'

-- The row of the flow whose latest lease is the next one; nil when that is not it.
local function leased(m, lease)
    local nonce, check, epoch = unpack_struct(LEASE, lease)
    local r = row(m)
    if damaged[m] then
        refuse(m, damaged[m])
    end
    if r and r.epoch == epoch and r.nonce == nonce and r.check == check then
        return r
    end
end

local function heartbeat()
    local due = after(now, number())
    local answers = {}
    for place = 1, number() do
        local m, lease = next_leased(), arg()
        local is_read, r = guard(leased, m, lease)
        local awaits_cleanup = is_read and r and r.state == SCHEDULED and guard(warm, r) and r.cleanup == CLEANUP_UNDERWAY
        if awaits_cleanup or is_read and r and r.state == CANCELLED then
            answers[place] = 2
        elseif is_read and r and r.state == RUNNING and guard(warm, r) then
            r.due = due
            zset(due_key(r))[r.m] = text(due)
            dirty_cold[r.m] = r
            answers[place] = 0
        else
            -- Also one that cannot be read, which is no other's trouble.
            answers[place] = 1
        end
    end
    return answers
end

local function release()
    local r = leased(next_leased(), arg())
    if r and r.state == SCHEDULED and warm(r).cleanup == CLEANUP_UNDERWAY then
        set(r, SCHEDULED, earlier(r.due, now))
        done(r)
        return 1
    end
    if not r or r.state ~= RUNNING then
        return 0
    end
    set(r, SCHEDULED, now)
    r.deliveries = greatest(r.deliveries - 1, 0)
    done(r)
    return 1
end
