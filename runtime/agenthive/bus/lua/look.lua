-- Looking at a queue, and fetching replies.

-- How many entries a stream was ever given; -1 where this user may not ask.
local function ever_added(stream)
  local info = redis.pcall('XINFO', 'STREAM', stream)
  if info.err then
    return string.find(info.err, 'no such key', 1, true) and 0 or -1
  end
  return fields_of(info)['entries-added']
end

-- stats: returns { waiting in lane 1, 2, 3, 4, in flight, delayed, dead letters, when the oldest waiting was accepted,
-- dead letters dropped, replies dropped, bytes of documents, those of the waiting that wait behind another one of their
-- ordering key, halted ordering keys, and since ever: messages that became ready to be claimed, those of them that are
-- finished, and dead letters; -1 where a user of earlier rules may not know }.
local function stats(keys)
  local P = prefix_of(keys)
  local added, ready = 0, 0
  local result, flight, oldest, behind, total = {}, 0, nil, 0, redis.call('HLEN', P .. 'held')
  for lane = 1, 4 do
    local stream = P .. 'q:' .. lane
    local length = redis.call('XLEN', stream)
    local ever = ever_added(stream)
    added = (added < 0 or ever < 0) and -1 or added + ever
    ready = ready + length
    total = total + length
    local again = redis.call('LLEN', P .. 'b:' .. lane) + redis.call('LLEN', P .. 's:' .. lane)
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    local pending, last = 0, '-'
    if not groups.err then
      for _, group in ipairs(groups) do
        local info = fields_of(group)
        if info.name == GROUP then
          pending, last = info.pending, '(' .. info['last-delivered-id']
          if pending > 0 then
            local summary = redis.call('XPENDING', stream, GROUP)
            for _, consumer in ipairs(summary[4] or {}) do
              if consumer[1] ~= NOBODY then
                flight = flight + tonumber(consumer[2])
              end
            end
          end
        end
      end
    end
    local fresh = length > pending and redis.call('XRANGE', stream, last, '+', 'COUNT', 1)[1]
    local again_first, suspect_first = redis.call('LINDEX', P .. 'b:' .. lane, 0), redis.call('LINDEX', P .. 's:' .. lane, 0)
    for _, entry in ipairs({ again_first, suspect_first, fresh and fresh[1] }) do
      if entry then
        local at = tonumber(string.match(entry, '^%d+'))
        oldest = math.min(oldest or at, at)
      end
    end
    local blocked = redis.call('ZCARD', P .. 'w:' .. lane)
    if blocked > 0 then
      behind = behind + blocked
      local at = tonumber(redis.call('ZRANGE', P .. 'w:' .. lane, 0, 0, 'WITHSCORES')[2])
      oldest = math.min(oldest or at, at)
    end
    result[lane] = math.max(0, length - pending) + again + blocked
  end
  result[5] = flight
  result[6] = redis.call('ZCARD', P .. 'delayed')
  result[7] = redis.call('XLEN', P .. 'dead')
  result[8] = oldest or -1
  local dropped = redis.call('HMGET', P .. 'counts', 'dead_letters', 'replies')
  result[9], result[10] = tonumber(dropped[1] or 0), tonumber(dropped[2] or 0)
  result[11] = total > 0 and tonumber(redis.call('GET', P .. 'bytes')) or 0
  result[12], result[13] = behind, redis.call('HLEN', P .. 'halted')
  result[14], result[15], result[16] = added, added < 0 and -1 or added - ready, ever_added(P .. 'dead')
  return result
end

-- Where a message that is not finished is, from its place in `ids`: { how it waits, when it was claimed, when its delay
-- ends } with -1 for a time there is none of. How: w it waits to be claimed, d not_before has not come, i a consumer has
-- it, r the time of its next attempt has not come, o another one of its ordering key comes first.
local function whereabouts(P, id, lane, entry, now)
  local how, member = 'd', 'h' .. id
  if entry ~= '-' then
    local pending = redis.pcall('XPENDING', P .. 'q:' .. lane, GROUP, entry, entry, 1)
    if pending.err or not pending[1] then
      return 'w', -1, -1
    elseif pending[1][2] ~= NOBODY then
      return 'i', now - pending[1][3], -1
    end
    how, member = 'r', 'r' .. lane .. ' ' .. entry
  end
  local due = redis.call('ZSCORE', P .. 'delayed', member)
  if entry == '-' and not due then
    return 'o', -1, -1
  end
  due = tonumber(due or 0)
  if due <= now then -- whoever claims next makes it ready
    return 'w', -1, -1
  end
  return how, -1, due
end

-- status: ARGV: message ids. Returns for each { place or "", final status or "", attempts that ended, how it waits (""
-- if it does not), when it was last claimed or -1, when its delay ends or -1, when it was first claimed or -1 }; place is "<lane> <entry> <accepted>" of a
-- message that is not finished.
local function status(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local found, places = {}, redis.call('HMGET', P .. 'ids', unpack(argv))
  local finals = finals_of(P, argv)
  for i, id in ipairs(argv) do
    local place = places[i]
    if place then
      local lane, entry = string.match(place, '^(%d) (%S+)')
      local tries = tonumber(redis.call('HGET', P .. 'tries', lane .. ' ' .. entry) or 0)
      local first, last = string.match(redis.call('HGET', P .. 'past', lane .. ' ' .. entry) or '', '^(%d+) (%d+)')
      local how, claimed, due = whereabouts(P, id, lane, entry, now)
      if claimed < 0 then
        claimed = tonumber(last or -1)
      end
      found[i] = { place, '', tries, how, claimed, due, tonumber(first or claimed) }
    else
      found[i] = { '', finals[i] or '', 0, '', -1, -1, -1 }
    end
  end
  return found
end

-- replies: ARGV: ids of requests. Returns the reply of each that has one, else "". It stays a few seconds
-- longer, for an asker whose connection ends before the answer is there.
local function replies(keys, argv)
  local P, found, marks = prefix_of(keys), {}, {}
  for i, id in ipairs(argv) do
    found[i] = redis.call('GET', P .. 'r:' .. id) or ''
    if found[i] ~= '' then
      redis.call('PEXPIRE', P .. 'r:' .. id, 10000, 'LT')
      marks[#marks + 1] = P .. 'u:' .. id
    end
  end
  local unheard = #marks > 0 and redis.call('DEL', unpack(marks)) or 0
  if unheard > 0 then -- they were not dropped after all
    redis.call('HINCRBY', P .. 'counts', 'replies', -unheard)
  end
  return found
end

define('stats', stats, { 'no-writes' })
define('status', status, { 'no-writes' })
define('replies', replies, { 'allow-oom' })
