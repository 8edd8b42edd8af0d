-- Mailboxes: messages by number in m:N, their places by channel in n:N.

local CHILDREN = 'child'
local MESSAGE = '>I4Bi8I2c0I2c0'

-- Where the places of a channel begin.
local function places(channel)
    return pack('>I2', #channel) .. channel
end

-- True when a channel is among those of a list in which each has its length before it.
local function is_among(channel, list)
    local from = 1
    while from <= #list do
        local name
        name, from = unpack_struct('>I4c0', list, from)
        if name == channel then
            return true
        end
    end
    return false
end

-- A mailbox as it is to be changed: its new messages in order, and the places of those that are to go by number.
local function box_of(r)
    local box = boxes[r.m]
    if not box then
        box = { removed = {}, cleared = false }
        boxes[r.m] = box
    end
    return box
end

-- The numbers of the messages on a channel after a number, at most `limit`, or all for -1.
local function numbers_on(r, channel, after, limit)
    local start = places(channel)
    local box = boxes[r.m]
    local found = call(
        'ZRANGEBYLEX', prefix .. 'n:' .. r.m, '(' .. start .. pack('>I4', after), '[' .. start .. '\255\255\255\255',
        'LIMIT', 0, box and -1 or limit
    )
    for place = 1, #found do
        found[place] = unpack_struct('>I4', found[place], #start + 1)
    end
    if not box then
        return found
    end
    local left = {}
    for place = 1, #found do
        if not box.removed[found[place]] then
            left[#left + 1] = found[place]
        end
    end
    for place = 1, #box do
        local new = box[place]
        if new.channel == channel and new.seq > after and not box.removed[new.seq] then
            left[#left + 1] = new.seq
        end
    end
    if limit >= 0 then
        for place = #left, limit + 1, -1 do
            left[place] = nil
        end
    end
    return left
end

local function has_any(r, list, heard)
    local from, place = 1, 1
    while r.box > 0 and from <= #list do
        local channel
        channel, from = unpack_struct('>I4c0', list, from)
        local after = place <= #heard and unpack_struct('>I4', heard, place) or 0
        place = place + 4
        if #numbers_on(r, channel, after, 1) > 0 then
            return true
        end
    end
    return false
end

-- The message with this number, as it is kept; nil when it is not there.
local function message(r, seq)
    local box = boxes[r.m]
    if box then
        if box.removed[seq] then
            return nil
        end
        for place = 1, #box do
            if box[place].seq == seq then
                return box[place].body
            end
        end
    end
    return call('ZRANGEBYSCORE', prefix .. 'm:' .. r.m, seq, seq)[1]
end

local function remove(r, seq)
    local body = r.box > 0 and message(r, seq)
    if body then
        local _, _, _, channel = unpack_struct(MESSAGE, body)
        box_of(r).removed[seq] = places(channel) .. pack('>I4', seq)
        r.box = r.box - 1
        touch(r)
    end
end

-- Takes all messages out; numbers and keys stay used. Nobody puts another one in afterwards.
local function clear(r)
    if r.box > 0 then
        box_of(r).cleared = true
        unlinked[#unlinked + 1] = prefix .. 'm:' .. r.m
        unlinked[#unlinked + 1] = prefix .. 'n:' .. r.m
        r.box = 0
    end
end

-- Puts a message into a mailbox, and wakes the flow if it waits for it.
local function deliver(r, channel, child, reference, payload)
    r.last = r.last + 1
    r.box = r.box + 1
    local body = pack(MESSAGE, r.last, child, now, #channel, channel, #reference, reference) .. payload
    local box = box_of(r)
    box[#box + 1] = { seq = r.last, channel = channel, body = body, spot = places(channel) .. pack('>I4', r.last) }
    if r.state == SUSPENDED and is_among(channel, warm(r).channels) then
        -- A timer may have come before the message, and nobody has claimed the flow since.
        set(r, SCHEDULED, earlier(r.due, now))
        done(r)
    else
        hint_flow(r)
        touch(r)
    end
end

-- Puts a message that is kept so back into a mailbox; one that is there is left alone.
local function put_back(r, seq, channel, body)
    if message(r, seq) then
        return
    end
    local box = box_of(r)
    r.last, r.box = greatest(r.last, seq), r.box + 1
    box[#box + 1] = { seq = seq, channel = channel, body = body, spot = places(channel) .. pack('>I4', seq) }
    touch(r)
end

-- Takes out those ends of children that are to go, by how a child has ended, and the path of the call that has
-- started it with the child's id.
local function withdraw(r, goes)
    if r.box == 0 then
        return
    end
    local told = numbers_on(r, CHILDREN, 0, -1)
    for place = 1, #told do
        local body = message(r, told[place])
        if body then
            local _, child, _, _, origin = unpack_struct(MESSAGE, body)
            if child ~= 0 and goes(child, origin) then
                remove(r, told[place])
            end
        end
    end
end
