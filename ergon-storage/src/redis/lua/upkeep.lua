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

local prune
do
    -- How many flows are looked at in one call, about, and of each lane at least.
    local PAGE, LANE_PAGE_MIN = 1000, 20

    local function is_before(a, b)
        if a.score ~= b.score then
            return a.score < b.score
        end
        return a.m < b.m
    end

    -- Looks at a part of the flows that have ended, after those that earlier parts have passed over, so many of each lane;
    -- answers how many it has forgotten, how many are passed over by now, whether that was all, and how many of those that
    -- it has passed over are such flows as are meant, but for their parents.
    prune = function()
        settle()
        local older_than, cursor, limit, keep, awaited = number(), arg(), number(), number(), number()
        local states, type_name = arg(), arg()
        local accepted, numbers, passed = {}, {}, {}
        local known = call('HGETALL', prefix .. 'lanes')
        for place = 1, #known, 2 do
            -- The name of a lane is its queue, its type, each with its length before it, and its version.
            local name = known[place]
            if type_name == '' or sub(name, byte(name, 1) + 2, -5) == type_name then
                local lane = to_number(match(known[place + 1], '^%d+'))
                accepted[lane], numbers[#numbers + 1], passed[lane] = true, lane, 0
            end
        end
        for lane, amount in matches(cursor, '(%d+):(%d+)') do
            passed[to_number(lane)] = to_number(amount)
        end
        local function is_meant(state)
            return states == '' or find(states, state, 1, true)
        end
        -- How many of those that are meant come before the ones that stay by their number.
        local free = math.huge
        if keep > 0 then
            free = -keep - awaited
            local all = call('HGETALL', prefix .. 'counts')
            for place = 1, #all, 2 do
                local lane, state = match(all[place], '^(%d+):(%d+)$')
                state = to_number(state)
                if state >= COMPLETED and state <= CANCELLED and accepted[to_number(lane)] and is_meant(state) then
                    free = free + to_number(all[place + 1])
                end
            end
        end
        if free <= 0 or not numbers[1] then
            return { 0, '', 1, 0 }
        end
        local page = PAGE / #numbers
        page = greatest(LANE_PAGE_MIN, page - page % 1)
        -- The first of what is left of lanes that are looked at in part: nobody knows what comes after it.
        local found, bound = {}, nil
        for place = 1, #numbers do
            local lane = numbers[place]
            local part = call(
                'ZRANGEBYSCORE', prefix .. 'fin:' .. lane, '-inf', digits(now - older_than), 'WITHSCORES', 'LIMIT',
                digits(passed[lane]), digits(page)
            )
            for entry = 1, #part, 2 do
                found[#found + 1] = { m = part[entry], score = to_number(part[entry + 1]), lane = lane }
            end
            if #part == 2 * page and not (bound and is_before(bound, found[#found])) then
                bound = found[#found]
            end
        end
        sort(found, is_before)
        local last = 0
        while last < least(#found, PAGE) and not (bound and is_before(bound, found[last + 1])) do
            last = last + 1
        end
        local names = {}
        for place = 1, last do
            names[place] = found[place].m
        end
        fetch(names)
        fetch_cold(names)
        local forgotten, waiting = 0, 0
        for place = 1, last do
            if forgotten == limit or free <= 0 then
                break
            end
            local lane, r = found[place].lane, row(names[place])
            local is_one = r and r.state >= COMPLETED and r.state <= CANCELLED and is_meant(r.state)
            if is_one then
                free = free - 1
            end
            if is_one and not is_awaited(r) then
                forget(r)
                forgotten = forgotten + 1
            else
                passed[lane] = passed[lane] + 1
                waiting = waiting + (is_one and 1 or 0)
            end
        end
        local places = {}
        for place = 1, #numbers do
            places[place] = numbers[place] .. ':' .. digits(passed[numbers[place]])
        end
        local is_all = not bound and last == #found or forgotten == limit or free <= 0
        return { forgotten, table.concat(places, ' '), is_all and 1 or 0, waiting }
    end
end
