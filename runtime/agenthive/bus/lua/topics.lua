-- Topics: what is published to one is kept in its log, and each subscribed agent's pump copies it into its queue.
--
-- A topic's log has a slot of its own; KEYS[1] of `publish` is "ah:{instance/namespace/hive/#topic}:gate". Beside it:
--   log     stream of what was published: fields l (lane) and m (as in an agent's queue)
--   last    id of the newest entry, "<ms>-<number>". The ids are made here: ms never goes back, and number counts all
--           that was published, so that two ids tell how much lies between them, trimmed or not.
-- In the slot of an agent:
--   topics         hash, topic -> "<id of the last entry copied> <when that was last looked at, ms>": the cursor
--   pump:<topic>   which process copies the topic now; runs out by itself. It only spares work: the cursor moves in the
--                  call that adds the copies, so two processes that copy at the same time copy nothing twice.

local STAMP_MS = 60000 -- how old "last looked at" may become while a pump runs

local function numbers_of(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

-- publish: ARGV: as in send (whether it is a repetition is of no account: copies are told by their id), length of the log,
-- retention (ms), then per message: lane, id, JSON document, ttl (ms), options ("" for none).
-- Returns one character per message: 1.
local function publish(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  if string.sub(argv[1], -2) == ' o' and closed(P) then
    return CLOSED
  end
  local log, retention = P .. 'log', tonumber(argv[3])
  local last = redis.call('GET', P .. 'last')
  local ms, number = 0, 0
  if last then
    ms, number = numbers_of(last)
  end
  ms = math.max(ms, now)
  local count = 0
  for at = 4, #argv, 5 do
    local ttl, words = tonumber(argv[at + 3]), argv[at + 4]
    local due = math.max(now, tonumber(options_of(words).b or 0))
    local head = as_14(due + ttl)
    if words ~= '' then
      head = head .. ' ' .. words
    end
    count = count + 1
    redis.call('XADD', log, as_ms(ms) .. '-' .. as_ms(number + count), 'l', argv[at],
      'm', head .. '\n' .. argv[at + 1] .. '\n' .. argv[at + 2])
  end
  redis.call('SET', P .. 'last', as_ms(ms) .. '-' .. as_ms(number + count), 'PX', as_ms(2 * retention + 86400000))
  redis.call('XTRIM', log, 'MAXLEN', '~', argv[2])
  redis.call('XTRIM', log, 'MINID', '~', as_ms(now - retention) .. '-0')
  redis.call('PEXPIRE', log, as_ms(retention)) -- a log nobody adds to is not trimmed: it goes whole
  return string.rep('1', count)
end

-- subscribe: give each topic a cursor unless it has one, and drop those of other topics that nobody has looked at for
-- the topics' retention: the agent gave them up. ARGV: retention (ms), then per topic: name, id to start after.
local function subscribe(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local wanted = {}
  for at = 2, #argv, 2 do
    wanted[argv[at]] = true
    redis.call('HSETNX', P .. 'topics', argv[at], argv[at + 1] .. ' ' .. as_ms(now))
  end
  local cursors = redis.call('HGETALL', P .. 'topics')
  for i = 1, #cursors, 2 do
    local looked_at = tonumber(string.match(cursors[i + 1], ' (%d+)$') or 0)
    if not wanted[cursors[i]] and looked_at + tonumber(argv[1]) < now then
      redis.call('HDEL', P .. 'topics', cursors[i])
    end
  end
end

-- lead: take or renew the lease of each topic that nobody else pumps. ARGV: process ("<pod>/<nonce>"), lease (ms),
-- topics. Another process of the same pod is dead. Returns per topic its cursor, "" without the lease, and "-" with the
-- lease if the cursor is gone.
local function lead(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local pod = string.match(argv[1], '^(.*)/')
  local result = {}
  for n = 3, #argv do
    local topic = argv[n]
    local key = P .. 'pump:' .. topic
    local holder = redis.call('GET', key)
    if holder and holder ~= argv[1] and string.match(holder, '^(.*)/') ~= pod then
      result[n - 2] = ''
    else
      redis.call('SET', key, argv[1], 'PX', argv[2])
      local cursor = redis.call('HGET', P .. 'topics', topic)
      local id, looked_at = string.match(cursor or '', '^(%S+) (%d+)$')
      if id and now - tonumber(looked_at) > STAMP_MS then
        redis.call('HSET', P .. 'topics', topic, id .. ' ' .. as_ms(now))
      end
      result[n - 2] = id or '-'
    end
  end
  return result
end

-- cede: give leases up. ARGV: process, topics.
local function cede(keys, argv)
  local P = prefix_of(keys)
  for n = 2, #argv do
    if redis.call('GET', P .. 'pump:' .. argv[n]) == argv[1] then
      redis.call('DEL', P .. 'pump:' .. argv[n])
    end
  end
end

-- copy: add entries of a topic's log to the queue and move the cursor behind them, in one step: whoever dies, and
-- whatever is repeated, an entry is copied once. The queue takes them as it takes what is sent: a message it knows, or has
-- finished, was published twice and is not copied again. ARGV: topic, bound of the queue, then per entry: its id, lane,
-- field m. Returns { cursor ("" if there is none), entries dealt with, copies made, entries that were trimmed before they
-- were copied, "1" if the queue is full }.
local function copy(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local cursor = string.match(redis.call('HGET', P .. 'topics', argv[1]) or '', '^%S+')
  if not cursor then
    return { '', 0, 0, 0, '0' }
  end
  local at_ms, at_number = numbers_of(cursor)
  local first, last = 3, #argv
  while first < last do -- what another pump has copied
    local ms, number = numbers_of(argv[first])
    if ms > at_ms or (ms == at_ms and number > at_number) then
      break
    end
    first = first + 3
  end
  local dealt, copies, missed = (first - 3) / 3, 0, 0
  if first > last then
    return { cursor, dealt, 0, 0, '0' }
  end

  local batch, entries = { '1', argv[2] }, {}
  for at = first, last, 3 do
    local expiry, words, id, document = split_entry({ 'm', argv[at + 2] })
    if expiry then
      local due = math.max(now, words ~= '' and tonumber(options_of(words).b) or 0)
      local n = #batch
      batch[n + 1], batch[n + 2], batch[n + 3] = argv[at + 1], id, document
      batch[n + 4], batch[n + 5] = tonumber(expiry) - due, words
      entries[#entries + 1] = at
    end
  end
  local results = #entries > 0 and send(keys, batch) or ''
  local full = string.find(string.sub(results, 1, #entries), '[04]')
  local stop = full and entries[full] or last + 1
  for n = 1, (full or #entries + 1) - 1 do
    copies = copies + (string.sub(results, n, n) == '1' and 1 or 0)
  end
  local next_entry = 1
  for at = first, stop - 1, 3 do
    if entries[next_entry] == at then
      next_entry = next_entry + 1
    else
      write_dead_letter(P, '', string.sub(argv[at + 2], 1, 262144), 'malformed', 'topic ' .. argv[1]
        .. ' holds an entry without the fields l (lane) and m (expiry and options, message id, JSON document)', 0)
    end
    dealt, cursor = dealt + 1, argv[at]
  end
  if stop > first and at_ms > 0 then -- not at the very beginning
    local _, number = numbers_of(argv[first])
    missed = math.max(0, number - at_number - 1) -- numbers go back where a failover has lost some: none was missed
  end
  redis.call('HSET', P .. 'topics', argv[1], cursor .. ' ' .. as_ms(now))
  return { cursor, dealt, copies, missed, full and '1' or '0' }
end

define('publish', publish, {})
define('subscribe', subscribe, { 'allow-oom' })
define('lead', lead, { 'allow-oom' })
define('cede', cede, { 'allow-oom' })
define('copy', copy, {})
