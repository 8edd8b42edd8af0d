-- What is done to a flow from outside.

local NOT_FOUND = -1

local function send()
    local r = find_id(arg())
    local channel, message_key, payload = arg(), arg(), arg()
    if not r then
        return NOT_FOUND
    end
    local new_keys = message_keys[r.m]
    if message_key ~= '' then
        if new_keys and new_keys[message_key] or call('SISMEMBER', prefix .. 'k:' .. r.m, message_key) == 1 then
            return 1
        end
    end
    if r.state >= COMPLETED and r.state <= CANCELLED then
        return { -2, r.state }
    end
    if message_key ~= '' then
        if not new_keys then
            new_keys = {}
            message_keys[r.m] = new_keys
        end
        new_keys[message_key] = true
    end
    deliver(r, channel, 0, '', payload)
    return 0
end

local cancel, retry, reoffer, import, take_back
do
    -- Hands every attached child of a flow after a number to `take`, in the order in which they were accepted.
    local function each_child(r, after_name, take)
        local children = call('ZRANGEBYSCORE', prefix .. 'c:' .. r.id, '(' .. digits(to_number(after_name, 16)), '+inf')
        fetch(children)
        fetch_cold(children)
        for index = 1, #children do
            local child = row(children[index])
            if child and warm(child).detached ~= 1 then
                take(child)
            end
        end
    end

    -- The greatest number of records that a flow can have.
    local RECORDS_MAX = 16777213

    -- Adds the record of a cancellation to a flow's history, as `put_record` in wire.rs writes it, and schedules its
    -- clean-up. Whoever runs it may be in the middle of something.
    local function clean_up(r, reason)
        set(r, SCHEDULED, r.state == RUNNING and r.due or now)
        r.records, r.deliveries, r.cleanup = r.records + 1, 0, CLEANUP_UNDERWAY
        push(r, pack('>BBBc0I8I4i8i8BBc0', 3, 8, 1, '0', 0, 0, now, now, 0, 9, 'cancelled') .. reason)
        done(r)
    end

    -- Cancels a flow and its attached descendants; those that have something to clean up are scheduled for that, but for
    -- the flow itself where it is to end `at_once`.
    local function cancel_family(first, reason, at_once)
        local pending = { first }
        while #pending > 0 do
            local r = warm(take_out(pending))
            local is_forced = at_once and r.m == first.m
            if (r.state < COMPLETED or r.state > CANCELLED) and (r.cleanup ~= CLEANUP_UNDERWAY or is_forced) then
                r.commit, r.answer = 0, 0
                if r.cleanup == CLEANUP_NEEDED and r.records < RECORDS_MAX and not is_forced then
                    clean_up(r, reason)
                else
                    -- What goes with its parent has nobody to tell.
                    finish(r, CANCELLED, CANCELLED_CHILD, reason, reason, r.m ~= first.m)
                end
                each_child(r, r.m, function(child)
                    pending[#pending + 1] = child
                end)
            end
        end
    end

    cancel = function()
        local r = find_id(arg())
        local reason, at_once = arg(), arg() == '1'
        if not r then
            return NOT_FOUND
        end
        if r.state >= COMPLETED and r.state <= CANCELLED then
            return r.state
        end
        if warm(r).cleanup == CLEANUP_UNDERWAY and not at_once then
            return CANCELLED
        end
        cancel_family(r, reason, at_once)
        return 0
    end

    -- The paths of a list in which each has its length before it.
    local function set_of(list)
        local all, from = {}, 1
        while from <= #list do
            local path
            path, from = unpack_struct('>I4c0', list, from)
            all[path] = true
        end
        return all
    end

    -- Removes the records of the calls that are to be made again, and the result.
    local function forget_calls(r, again)
        local m, name = r.m, prefix .. 'h:' .. r.m
        if push_first[m] or pushes[m] then
            -- Its last records are not there yet.
            fail(APART, 0)
        end
        local edit = { has_tail = r.tail == 1 }
        if r.again ~= '' then
            local at_record = 0
            each_part(name, 0, r.records, TIME_MAX, function(record)
                if again[sub(record, 4, 3 + byte(record, 3))] then
                    edit[#edit + 1] = at_record
                end
                at_record = at_record + 1
            end)
            if at_record < r.records then
                refuse(m, 'its history has ' .. digits(at_record) .. ' entries, by its row ' .. digits(r.records))
            end
        end
        r.records, r.tail, edits[m] = r.records - #edit, 0, edit
    end

    -- Takes out of a failed flow's mailbox the ends of children that it is to hear anew: of the calls that it makes again,
    -- and of those that have failed and are scheduled again, which are added to `pending`.
    local function withdraw_failures(r, again, pending)
        if #numbers_on(r, CHILDREN, 0, 1) == 0 then
            return
        end
        -- The last child of a call is the one that it waits for.
        local last = {}
        each_child(r, run_name(r), function(child)
            last[child.path] = child
        end)
        withdraw(r, function(outcome, origin)
            local path = match(origin, '^[^ ]*')
            if again[path] then
                return true
            end
            -- Without the child, its end is all there is of it.
            local child = last[path]
            if outcome ~= FAILED_CHILD or not child or child.state ~= FAILED or origin ~= path .. ' ' .. child.id then
                return false
            end
            pending[child.m] = child
            return true
        end)
    end

    local function schedule_one_again(r, pending)
        warm(r)
        if r.state == FAILED then
            local again = set_of(r.again)
            withdraw_failures(r, again, pending)
            forget_calls(r, again)
        end
        set(r, SCHEDULED, now)
        r.deliveries, r.finished = 0, NEVER
        if r.deadline ~= NEVER then
            r.deadline = after(now, greatest(r.deadline - r.start, 0))
        end
        done(r)
    end

    -- Schedules a flow that has failed or come to a standstill, and with it the descendants that it would fail of.
    schedule_again = function(r)
        withdraw_end(r)
        local pending = { [r.m] = r }
        while next(pending) do
            local m, flow = next(pending)
            pending[m] = nil
            schedule_one_again(flow, pending)
        end
    end

    retry = function()
        settle()
        local r = find_id(arg())
        if not r then
            return NOT_FOUND
        end
        if r.state ~= FAILED and r.state ~= STALLED then
            return r.state
        end
        schedule_again(r)
        return 0
    end

    -- Puts in a flow that comes whole: both parts of its row, its lane, its headers, and how many records, messages, keys
    -- and items there are. Answers 0 when its id is taken.
    import = function()
        local r = decode('', arg()) or fail('the row of a flow cannot be read', 0)
        decode_cold(r, arg())
        r.lane_name, r.header = arg(), arg()
        local run_header, result = arg(), arg()
        local records, box, keys, items = {}, { removed = {}, cleared = false }, {}, {}
        for place = 1, number() do
            records[place] = arg()
        end
        for place = 1, number() do
            local channel, body = arg(), arg()
            local seq = unpack_struct('>I4', body)
            box[place] = { seq = seq, channel = channel, body = body, spot = places(channel) .. pack('>I4', seq) }
        end
        for _ = 1, number() do
            keys[arg()] = true
        end
        for place = 1, number() do
            local feed, body = arg(), arg()
            items[place] = { feed = feed, seq = unpack_struct('>I4', body), body = body, is_last = false }
        end
        if find_id(r.id) then
            return 0
        end
        insert(r, take_numbers(1))
        local m = r.m
        if run_header ~= '' then
            run_headers[m] = run_header
        end
        for place = 1, #records do
            push(r, records[place])
        end
        if result ~= '' then
            push(r, result)
        end
        if box[1] then
            boxes[m] = box
        end
        if next(keys) then
            message_keys[m] = keys
        end
        if items[1] then
            new_items[m] = items
        end
        return 1
    end

    -- Takes a flow back to its first records, without those of some calls. Answers -2 when it is not as it was seen.
    take_back = function()
        settle()
        local r = find_id(arg())
        local run, epoch, seen, keep, again, reason = number(), number(), number(), number(), set_of(arg()), arg()
        local messages, children = {}, {}
        for place = 1, number() do
            messages[place] = { channel = arg(), body = arg() }
        end
        for place = 1, number() do
            children[place] = arg()
        end
        if not r then
            return NOT_FOUND
        end
        if warm(r).run ~= run or r.epoch ~= epoch or r.records ~= seen then
            return -2
        end
        for place = 1, #children do
            local child = find_id(children[place])
            local parent = child and hearer(child)
            if parent and parent.m == r.m and (child.state < COMPLETED or child.state > CANCELLED) and child.cleanup > 0 then
                return { -3, place }
            end
        end
        -- From here on nothing is refused.
        withdraw_end(r)
        for place = 1, #children do
            local child = find_id(children[place])
            local parent = child and hearer(child)
            if parent and parent.m == r.m then
                -- The end of the flow's own child is told to it, and withdrawn below.
                cancel_family(child, reason, true)
                forget(child)
            end
        end
        local m, name = r.m, prefix .. 'h:' .. r.m
        local edit, at_record = { has_tail = r.tail == 1, keep = keep }, 0
        if next(again) then
            each_part(name, 0, keep, TIME_MAX, function(record)
                if again[sub(record, 4, 3 + byte(record, 3))] then
                    edit[#edit + 1] = at_record
                end
                at_record = at_record + 1
            end)
        end
        r.records, r.tail, edits[m] = keep - #edit, 0, edit
        for place = 1, #messages do
            local new = messages[place]
            local seq = unpack_struct('>I4', new.body)
            put_back(r, seq, new.channel, new.body)
        end
        withdraw(r, function() return true end)
        set(r, SCHEDULED, now)
        r.cleanup = least(r.cleanup, CLEANUP_NEEDED)
        r.epoch, r.deliveries, r.emitted, r.commit, r.answer, r.finished = r.epoch + 1, 0, 0, 0, 0, NEVER
        if r.deadline ~= NEVER then
            r.deadline = after(now, greatest(r.deadline - r.start, 0))
        end
        done(r)
        return 0
    end

    -- Looks at a part of the stalled flows, after those that an earlier part has looked at, and offers them again; answers
    -- how many, and where it came to: a lane, 0 at the end, and a place in it.
    reoffer = function()
        settle()
        local build, from, cursor, limit = '=' .. arg(), number(), arg(), number()
        local types = {}
        for _ = 1, number() do
            types[arg()] = true
        end
        local known, found = call('HGETALL', prefix .. 'lanes'), {}
        for place = 1, #known, 2 do
            -- The name of a lane is its queue, each part with its length before it, and then type and version.
            local name = known[place]
            local lane = to_number(match(known[place + 1], '^%d+'))
            if lane >= from and types[sub(name, byte(name, 1) + 2)] then
                found[#found + 1] = lane
            end
        end
        sort(found)
        local offered, looked = 0, 0
        for place = 1, #found do
            local lane = found[place]
            if lane ~= from then
                cursor = '0'
            end
            repeat
                if looked >= limit then
                    return { offered, lane, cursor }
                end
                local part = call('HSCAN', prefix .. 's:' .. lane, cursor, 'COUNT', 200)
                cursor = part[1]
                local numbers = {}
                for entry = 1, #part[2], 2 do
                    if part[2][entry + 1] ~= build then
                        numbers[#numbers + 1] = part[2][entry]
                    end
                end
                looked = looked + #part[2] / 2
                fetch(numbers)
                fetch_cold(numbers)
                for entry = 1, #numbers do
                    local r = row(numbers[entry])
                    -- A scan may name one twice.
                    if r and r.state == STALLED then
                        set(r, SCHEDULED, now)
                        done(r)
                        offered = offered + 1
                    end
                end
            until cursor == '0'
        end
        return { offered, 0, '0' }
    end
end
