-- Questions. None of them writes.

-- By the letters in the arguments.
local READS
do
    local function read_flow()
        local r = find_id(arg())
        if not r then
            return {}
        end
        local header = run_header_of(r) or refuse(r.m, 'its header is gone')
        return { encode(r), encode_cold(warm(r)), header, result_of(r) }
    end

    -- The first records after a number, and whether that is all that was asked for.
    local function read_history()
        local r = find_id(arg())
        local after, limit = number(), number()
        if not r then
            return {}
        end
        local last, records = least(after + limit, r.records), {}
        local bytes = each_part(prefix .. 'h:' .. r.m, after, last, PART_BYTES_MAX, function(record)
            records[#records + 1] = record
        end)
        if bytes < PART_BYTES_MAX and after + #records < last then
            refuse(r.m, 'its history has ' .. digits(after + #records) .. ' entries, by its row ' .. digits(r.records))
        end
        return { records, after + #records >= last and 1 or 0 }
    end

    local function read_mail()
        local r = find_id(arg())
        local after, limit = number(), number()
        local numbers
        local channels = number()
        if not r then
            return {}
        end
        if channels > 0 then
            numbers = {}
            for _ = 1, channels do
                local some = numbers_on(r, arg(), after, limit)
                for place = 1, #some do
                    numbers[#numbers + 1] = some[place]
                end
            end
            sort(numbers)
        end
        local messages, bytes, last, is_all = {}, 0, after, 0
        while bytes < PART_BYTES_MAX do
            local body
            if #messages < limit then
                if numbers then
                    local seq = numbers[#messages + 1]
                    body = seq and message(r, seq)
                else
                    body = call('ZRANGEBYSCORE', prefix .. 'm:' .. r.m, '(' .. digits(last), '+inf', 'LIMIT', 0, 1)[1]
                end
            end
            if not body then
                is_all = 1
                break
            end
            messages[#messages + 1] = body
            bytes = bytes + #body
            last = unpack_struct('>I4', body)
        end
        return { messages, is_all }
    end

    local function read_items()
        local r = find_id(arg())
        local name, after, limit = arg(), number(), number()
        if not r then
            return {}
        end
        name = prefix .. 'o:' .. r.m .. ':' .. name
        local first = call('LINDEX', name, 0)
        if not first then
            return { {}, 1 }
        end
        -- The numbers of the items that are kept have no gaps.
        local from = greatest(after + 1 - unpack_struct('>I4', first), 0)
        local last = least(from + limit, call('LLEN', name))
        local items = {}
        each_part(name, from, last, PART_BYTES_MAX, function(item)
            items[#items + 1] = item
        end)
        return { items, from + #items >= last and 1 or 0 }
    end

    -- What no other question tells: the row, the header that the flow was accepted with where its run has another one,
    -- the keys of its messages, and its feeds with their last numbers.
    local function read_extras()
        local r = find_id(arg())
        if not r then
            return {}
        end
        warm(r)
        local accepted = r.run > 1 and (header_of(r.m) or refuse(r.m, 'its header is gone')) or ''
        local keys, feeds = call('SMEMBERS', prefix .. 'k:' .. r.m), call('HGETALL', prefix .. 'o:' .. r.m)
        return { encode(r), encode_cold(r), accepted, keys, feeds }
    end

    READS = { f = read_flow, h = read_history, m = read_mail, i = read_items, x = read_extras }
end

-- Those about many flows. Lua takes 200 local names at a time at most.
do
    -- What a filter asks of a flow, out of the arguments.
    local function read_filter()
        local filter = { states = arg(), of_type = arg(), queue = arg(), parent = arg(), reason = arg(), labels = {} }
        filter.has_reason = sub(filter.reason, 1, 1) == '='
        filter.reason = sub(filter.reason, 2)
        local from, before, finished_from, finished_before, due_from, due_before = arg(), arg(), arg(), arg(), arg(), arg()
        filter.created_from, filter.created_before = to_number(from), to_number(before)
        filter.finished_from, filter.finished_before = to_number(finished_from), to_number(finished_before)
        filter.due_from, filter.due_before = to_number(due_from), to_number(due_before)
        for place = 1, number() do
            filter.labels[place] = arg()
        end
        filter.is_cold = filter.has_reason or #filter.labels > 0 or filter.created_from or filter.created_before
            or filter.finished_from or filter.finished_before or filter.due_from or filter.due_before
        return filter
    end

    -- Why a flow failed, was cancelled or is stalled; nil in the other states. The log's own reason is not kept.
    local function reason_of(r)
        if r.state == STALLED and r.reason == '' and r.build == '' then
            local replace = string.gsub
            local worker = replace(replace(r.worker, '\\', '\\\\'), '"', '\\"')
            return 'claimed ' .. digits(r.deliveries) .. ' times without making progress, the last time by "' .. worker
                .. '"; `retry` offers it again'
        end
        return (r.state == FAILED or r.state == CANCELLED or r.state == STALLED) and r.reason or nil
    end

    -- True when the rest of a row passes, too.
    local function passes(r, filter)
        if filter.parent ~= '' and r.parent ~= filter.parent then
            return false
        end
        if filter.has_reason then
            local reason = reason_of(r)
            if not reason or not find(reason, filter.reason, 1, true) then
                return false
            end
        end
        local lines = '\n' .. r.labels .. '\n'
        for place = 1, #filter.labels do
            if not find(lines, '\n' .. filter.labels[place] .. '\n', 1, true) then
                return false
            end
        end
        if filter.created_from and r.created < filter.created_from
            or filter.created_before and r.created >= filter.created_before then
            return false
        end
        if (filter.due_from or filter.due_before) and r.due == NEVER
            or filter.due_from and r.due < filter.due_from
            or filter.due_before and r.due >= filter.due_before then
            return false
        end
        return not ((filter.finished_from or filter.finished_before) and r.finished == NEVER
            or filter.finished_from and r.finished < filter.finished_from
            or filter.finished_before and r.finished >= filter.finished_before)
    end

    -- How many flows are looked up by when they are due; where there are more, all flows are looked at.
    local DUE_MAX = 10000

    -- The numbers of the flows of these lanes that are due when a filter asks for it, in their order; nil when it does not, or
    -- when they are too many.
    local function numbers_due(filter, known, accepted)
        if not filter.due_from and not filter.due_before then
            return
        end
        local from = filter.due_from and format('%.0f', filter.due_from) or '-inf'
        local before = filter.due_before and '(' .. format('%.0f', filter.due_before) or '+inf'
        local all = {}
        local function add(name)
            if #all + call('ZCOUNT', name, from, before) > DUE_MAX then
                return false
            end
            local some = call('ZRANGEBYSCORE', name, from, before)
            for place = 1, #some do
                all[#all + 1] = to_number(some[place], 16)
            end
            return true
        end
        for index = 2, #known, 2 do
            local lane, priorities = match(known[index], '^(%d+)(.*)$')
            if accepted[to_number(lane)] then
                for priority in matches(priorities, '%S+') do
                    local place = lane .. ':' .. priority
                    if not add(prefix .. 'q:' .. place) or not add(prefix .. 'w:' .. place) then
                        return
                    end
                end
            end
        end
        sort(all)
        return all
    end

    -- The numbers of flows after this one, at most so many: out of a list, or of an index.
    local function numbers_after(last, listed, source, page)
        local found = {}
        if listed then
            for place = 1, #listed do
                if listed[place] > last and #found < page then
                    found[#found + 1] = listed[place]
                end
            end
            return found
        end
        local some = call(
            'ZRANGEBYSCORE', prefix .. source, '(' .. format('%.0f', last), '+inf', 'WITHSCORES', 'LIMIT', 0, page
        )
        for index = 2, #some, 2 do
            found[#found + 1] = to_number(some[index])
        end
        return found
    end

    -- Hands the flows after a number that pass a filter to `take`, as it is kept, until `wanted` says no or enough was
    -- looked at; answers the number it came to and whether that was the end, and the names of the lanes.
    local function scan(after, filter, wanted, take)
        local known = call('HGETALL', prefix .. 'lanes')
        local accepted = {}
        for index = 1, #known, 2 do
            local name = known[index]
            local queue_end = byte(name, 1) + 1
            local type_end = queue_end + 1 + byte(name, queue_end + 1)
            accepted[to_number(match(known[index + 1], '^%d+'))] = (filter.queue == '' or sub(name, 1, queue_end) == filter.queue)
                and (filter.of_type == '' or sub(name, queue_end + 1, type_end) == filter.of_type)
        end
        local last, scanned = after, 0
        local source = filter.labels[1] and 'a:' .. filter.labels[1] or filter.parent ~= '' and 'c:' .. filter.parent or 'ids'
        local listed = numbers_due(filter, known, accepted)
        while wanted() > 0 and scanned < 2000 do
            local page = least(500, greatest(wanted(), 50))
            local some = numbers_after(last, listed, source, page)
            local numbers, names = {}, {}
            for index = 1, #some do
                numbers[index] = name_of(some[index])
                names[index] = prefix .. 'f:' .. numbers[index]
            end
            local raws = #names > 0 and call('MGET', unpack_list(names)) or {}
            for index = 1, #raws do
                if wanted() <= 0 then
                    break
                end
                last = some[index]
                local raw = raws[index]
                -- The state is the first byte of a row.
                if raw and (filter.states == '' or find(filter.states, byte(raw, 1), 1, true)) then
                    local r = decode(numbers[index], raw)
                    if r and accepted[r.lane] then
                        local cold
                        if filter.is_cold then
                            cold = call('GET', prefix .. 'g:' .. numbers[index])
                            r = cold and guard(decode_cold, r, cold) and passes(r, filter) and r
                        end
                        if r then
                            take(r, last, raw, cold)
                        end
                    end
                end
            end
            scanned = scanned + page
            if #raws < page then
                return last, 1, known
            end
        end
        return last, 0, known
    end

    -- A part of a list: the rows, and what `scan` says.
    local function read_list()
        local after, limit = number(), number()
        local found = {}
        local last, is_all, known = scan(after, read_filter(), function() return limit - #found end, function(r, at_number, raw, cold)
            found[#found + 1] = { format('%.0f', at_number), raw, cold or call('GET', prefix .. 'g:' .. r.m) }
        end)
        return { found, format('%.0f', last), is_all, known }
    end

    -- A part of a count: lanes and states with how many flows and the first due instant, and what `scan` says.
    local function read_count()
        local after = number()
        local counted, found = {}, {}
        local last, is_all, known = scan(after, read_filter(), function() return 500 end, function(r)
            local place = r.lane * 8 + r.state
            local entry = counted[place]
            if not entry then
                entry = { r.lane, r.state, 0, NEVER }
                counted[place], found[#found + 1] = entry, entry
            end
            entry[3] = entry[3] + 1
            if r.state <= SUSPENDED and (r.id or guard(warm, r)) then
                entry[4] = earlier(entry[4], r.due)
            end
        end)
        for place = 1, #found do
            found[place][4] = text(found[place][4])
        end
        return { found, format('%.0f', last), is_all, known }
    end

    -- How many flows are looked at to find the first of a state among those of two.
    local FIRST_MAX = 2000

    -- When the first flow of each of these states is due that an index has. Of two states that share it, the one whose first is
    -- later is looked for among the first flows only.
    local function first_due(name, states)
        local first, missing, from = {}, #states, 0
        while missing > 0 and from < FIRST_MAX do
            local last = from == 0 and 0 or from + 499
            local page = call('ZRANGE', name, digits(from), digits(last), 'WITHSCORES')
            local names = {}
            for place = 1, #page, 2 do
                names[#names + 1] = prefix .. 'f:' .. page[place]
            end
            local raws = names[1] and call('MGET', unpack_list(names)) or {}
            for place = 1, #raws do
                local state = raws[place] and byte(raws[place], 1)
                if state and not first[state] then
                    first[state], missing = to_number(page[2 * place]), missing - 1
                end
            end
            if #names <= last - from then
                break
            end
            from = last + 1
        end
        return first
    end

    -- Every lane and state that has flows: the lane's name, the state, how many, and the first due instant.
    local function read_counts()
        local known, numbers = call('HGETALL', prefix .. 'lanes'), {}
        for index = 1, #known, 2 do
            numbers[match(known[index + 1], '^%d+')] = { name = known[index], all = known[index + 1], states = {}, due = {} }
        end
        local all, found = call('HGETALL', prefix .. 'counts'), {}
        for index = 1, #all, 2 do
            local lane, state = match(all[index], '^(%d+):(%d+)$')
            if numbers[lane] then
                numbers[lane].states[to_number(state)] = to_number(all[index + 1])
            end
        end
        for lane, entry in each(numbers) do
            local is_any, others = entry.states, {}
            others[1] = is_any[RUNNING] and RUNNING
            others[#others + 1] = is_any[SUSPENDED] and SUSPENDED
            for priority in matches(match(entry.all, '^%d+(.*)$'), '%S+') do
                local place = lane .. ':' .. priority
                local waiting = is_any[SCHEDULED] and call('ZRANGE', prefix .. 'q:' .. place, 0, 0, 'WITHSCORES') or {}
                local first = first_due(prefix .. 'w:' .. place, others)
                first[SCHEDULED] = to_number(waiting[2])
                for state, at in each(first) do
                    entry.due[state] = earlier(entry.due[state] or NEVER, at)
                end
            end
            for state, amount in each(is_any) do
                found[#found + 1] = { entry.name, state, amount, text(entry.due[state] or NEVER) }
            end
        end
        return found
    end

    READS.l, READS.c, READS.n = read_list, read_counts, read_count
end
