-- Forgetting what has ended.

-- True when the flow has a parent that hears of its end and has not ended itself.
local function is_awaited(r)
    local parent = hearer(r)
    return parent ~= nil and (parent.state < COMPLETED or parent.state > CANCELLED)
end

-- What is kept of a flow under its number.
local PARTS = { 'f:', 'g:', 'i:', 'j:', 'h:', 'm:', 'n:', 'k:' }

forget = function(r)
    warm(r)
    take_from_index(r)
    local m = r.m
    for place = 1, #PARTS do
        unlinked[#unlinked + 1] = prefix .. PARTS[place] .. m
    end
    local feeds = try('HGETALL', prefix .. 'o:' .. m)
    if #feeds > 0 then
        unlinked[#unlinked + 1] = prefix .. 'o:' .. m
    end
    for place = 1, #feeds, 2 do
        unlinked[#unlinked + 1] = prefix .. 'o:' .. m .. ':' .. feeds[place]
    end
    zset('ids')[r.id] = false
    if r.parent ~= '' then
        zset('c:' .. r.parent)[m] = false
    end
    list_labels(r, r.labels, false)
    left_lanes[r.lane] = true
    if r.labels ~= '' then
        bindings.forget(m)
    end
    hint_flow(r)
    rows[m], raws[m], dirty_raw[m], dirty_hot[m], dirty_cold[m], new_headers[m] = false, false, nil, nil, nil, nil
    push_first[m], pushes[m], edits[m], boxes[m], message_keys[m], run_headers[m] = nil, nil, nil, nil, nil, nil
    new_items[m] = nil
end

local function delete()
    local r = find_id(arg())
    if not r then
        return 0
    end
    if r.state < COMPLETED or r.state > CANCELLED then
        return { -1, r.state }
    end
    if is_awaited(r) then
        return { -2, 0 }
    end
    forget(r)
    return 1
end

-- Looks at a part of the flows that have ended, after those that an earlier part has passed over; answers how many
-- it has forgotten, how many it has passed over, whether that was all, and how many of those it has passed over are such
-- flows as are meant, but for their parents.
local function prune()
    settle()
    local older_than, passed, limit, keep, awaited = number(), number(), number(), number(), number()
    local states, type_name = arg(), arg()
    local accepted
    if type_name ~= '' then
        accepted = {}
        local known = call('HGETALL', prefix .. 'lanes')
        for place = 1, #known, 2 do
            -- The name of a lane is its queue, its type, each with its length before it, and its version.
            local name = known[place]
            accepted[to_number(match(known[place + 1], '^%d+'))] = sub(name, byte(name, 1) + 2, -5) == type_name
        end
    end
    local function is_meant(state, lane)
        return (states == '' or find(states, state, 1, true)) and (not accepted or accepted[lane])
    end
    -- How many of those that are meant come before the ones that stay by their number.
    local free = math.huge
    if keep > 0 then
        free = -keep - awaited
        local all = call('HGETALL', prefix .. 'counts')
        for place = 1, #all, 2 do
            local lane, state = match(all[place], '^(%d+):(%d+)$')
            state = to_number(state)
            if state >= COMPLETED and state <= CANCELLED and is_meant(state, to_number(lane)) then
                free = free + to_number(all[place + 1])
            end
        end
        if free <= 0 then
            return { 0, 0, 1, 0 }
        end
    end
    local found = call(
        'ZRANGEBYSCORE', prefix .. 'fin', '-inf', digits(now - older_than), 'LIMIT', passed, 1000
    )
    fetch(found)
    fetch_cold(found)
    local forgotten, over, waiting = 0, 0, 0
    for place = 1, #found do
        if forgotten == limit or free <= 0 then
            break
        end
        local r = row(found[place])
        local is_one = r and is_meant(r.state, r.lane)
        if is_one then
            free = free - 1
        end
        if is_one and not is_awaited(r) then
            forget(r)
            forgotten = forgotten + 1
        else
            over = over + 1
            waiting = waiting + (is_one and 1 or 0)
        end
    end
    return { forgotten, over, (#found < 1000 or forgotten == limit or free <= 0) and 1 or 0, waiting }
end
