-- The entry points. A call carries any number of operations; each has its own answer, and one that is refused
-- leaves the others alone.

local open
do
    -- What the functions call, each with a key or a channel of the namespace: a user who may not is told so before anything
    -- is written.
    local CALLED = {
        'EXISTS k', 'GET k', 'MGET k', 'MSET k v', 'UNLINK k', 'HGET k v', 'HMGET k v', 'HGETALL k', 'HSET k v v',
        'HDEL k v', 'HINCRBY k v 1', 'HSCAN k 0', 'RPUSH k v', 'RPOP k 1', 'LRANGE k 0 1', 'LINDEX k 0', 'LLEN k', 'LTRIM k 0 1',
        'LSET k 0 v', 'LREM k 0 v', 'SADD k v', 'SREM k v', 'SISMEMBER k v', 'SMEMBERS k', 'ZADD k 1 v', 'ZREM k v', 'ZCARD k',
        'ZCOUNT k 0 1', 'ZSCORE k v', 'ZMSCORE k v', 'ZRANGE k 0 1', 'ZRANGEBYSCORE k 0 1', 'ZRANGEBYLEX k - +',
        'ZREMRANGEBYSCORE k 0 1', 'TIME', 'PUBLISH k v', 'PUBSUB NUMSUB k', 'SUBSCRIBE k',
    }

    -- The first of these that the user may not call; nil when there is none, or the server does not tell.
    local function forbidden()
        local may = redis.acl_check_cmd
        for place = 1, may and #CALLED or 0 do
            local words = {}
            for word in matches(CALLED[place], '%S+') do
                words[#words + 1] = word == 'k' and #words > 0 and key('meta') or word
            end
            if not may(unpack_list(words)) then
                return CALLED[place]
            end
        end
    end

    -- Takes the namespace, if nobody has it; answers its schema, or -1 when it is another program's.
    open = function()
        local command = forbidden()
        if command then
            return { -2, match(command, '^%S+') .. ' on ' .. prefix .. '*' }
        end
        local schema = call('HGET', key('meta'), 'schema')
        if schema then
            return to_number(schema)
        end
        if call('EXISTS', key('meta')) == 1 then
            return -1
        end
        call('HSET', key('meta'), 'schema', SCHEMA)
        return SCHEMA
    end
end

local WRITES = {
    i = open, e = enqueue, a = claim, h = heartbeat, l = release, c = commit, u = give_up, s = send, x = cancel, r = retry,
    o = reoffer, d = delete, p = prune, n = import, t = take_back,
}

-- Where the operations begin, how many arguments and leases each has, and those that are refused, each with why.
local base, frame, refusals, is_apart, attempts
local answers

-- Goes to where an operation begins.
local function go_to(operation)
    at, lease_at = base, 0
    for place = 1, operation - 1 do
        local arguments, named = unpack_struct('>I4I4', frame, 8 * place - 7)
        at, lease_at = at + arguments, lease_at + named
    end
    index = operation - 1
end

-- Does all operations that are not refused. Nothing is written until the end, unless one needs what those before it
-- write.
local function run_all()
    local total = #argv
    while at < total do
        index = index + 1
        if refusals[index] then
            answers[index + 1] = { '!', refusals[index] }
            go_to(index + 1)
        else
            answers[index + 1] = WRITES[arg()]()
        end
        if is_apart then
            settle_this()
        end
    end
    flush()
end

-- Begins again after what is written. From then on each operation is written by itself, so that none is done more than
-- a few times.
local function begin_again(failure)
    attempts = attempts + 1
    if is_writing or failure == APART and is_apart or attempts > 4 * #frame then
        -- What the functions write for all flows alike cannot be written.
        fail(failure.err or failure, 0)
    end
    if failure ~= APART and failure ~= DAMAGED then
        local why = failure.err or failure
        if settled >= index then
            answers[index + 1] = { '!', why }
        else
            refusals[index] = why
        end
    end
    is_apart = true
    reset()
    go_to(settled + 1)
end

-- Arguments: the instant (empty for the server's own), how many arguments and leases each operation has, how many rows
-- the leases name and their numbers, of how many rows the other part will be needed and their numbers, then each
-- operation's letter and arguments.
local function write(keys, args)
    begin(keys, args)
    frame, refusals, is_apart, attempts = arg(), {}, false, 0
    local needed = number()
    for place = 1, needed do
        leases[place] = arg()
    end
    if needed > 1 then
        fetch(leases)
    end
    needed = number()
    if needed > 1 then
        local numbers = {}
        for place = 1, needed do
            numbers[place] = arg()
        end
        fetch_cold(numbers)
    else
        at = at + needed
    end
    base, answers = at, { time }
    while true do
        local is_done, failure = guard(run_all)
        if is_done then
            break
        end
        begin_again(failure)
    end
    publish()
    finish_call()
    local all = answers
    answers = nil
    return all
end

local function read(keys, args)
    begin(keys, args)
    local is_done, answer = guard(READS[arg()])
    if is_done then
        return answer
    end
    return { '!', answer.err or answer }
end
