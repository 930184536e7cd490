-- turn: one consumer's turn at the queue, in one call: what it finished, then what it gets next.
-- ARGV: 1 consumer, 2 lease (ms), 3 life of a status (ms), 4 max retries of messages that name none, 5-8 messages wanted
-- from lane 4, 3, 2, 1, 9 "1" or "0": whether this is a repetition, and how many connections were lost ("03"), 10 "1" to
-- pass a wake-up on, 11 bytes of documents wanted of what this turn gives up; from 12 acknowledgements, then other
-- endings (finish.lua).
-- Returns { refused acknowledgements, refused operations, groups, ms until this consumer must look again by itself
-- (-1: others do), state, now, notes or none (prelude.lua) }.
-- groups: { lane, kind, entries, attempts }: kind 0 first attempts, 1 later ones (then attempts is a list of their
-- numbers), 2 acknowledged by being claimed. Entries is flat: entry, its field m, entry, its field m …
-- state: 0; 1 the consumer was robbed of everything and must take a new name; 2 call again.

local SCAN_LIMIT = 1000 -- entries one call looks at, so that a flood of expired ones cannot hold the server
local DUE_LIMIT = 200 -- delayed messages one call makes ready
-- An entry that is to be handed out as it is, if it has not expired: no options, all lines there.
local PLAIN = '^%d%d%d%d%d%d%d%d%d%d%d%d%d%d\n[^\n]+\n'

-- Make ready what was delayed until now. Returns when the next delay ends, or nil.
local function promote(P, now)
  local next_due = tonumber(redis.call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')[2])
  if not next_due or next_due > now then
    return next_due
  end
  local due = redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', as_ms(now), 'LIMIT', 0, DUE_LIMIT)
  for _, member in ipairs(due) do
    local lane, entry = string.match(member, '^r(%d) (%S+)$')
    if lane then
      redis.call('RPUSH', P .. 'b:' .. lane, entry)
    else
      local id = string.sub(member, 2)
      local packed = redis.call('HGET', P .. 'held', id)
      if packed then
        enter_queue(P, id, packed)
      end
    end
  end
  if #due > 0 then
    redis.call('ZREM', P .. 'delayed', unpack(due))
  end
  return tonumber(redis.call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')[2])
end

local function bury_malformed(P, lane, entry, list)
  local parts = {}
  for i = 1, math.min(#list, 64) do
    parts[i] = string.sub(list[i], 1, 4096)
  end
  write_dead_letter(P, '', table.concat(parts, ' '), 'malformed',
    'entry has not the one field m of three lines: expiry in 14 digits and options, message id, JSON document', 0)
  remove(P, lane, entry)
end

-- The entries as a flat list, if every one of them is to be handed out as it is; else nil.
local function all_plain(entries, now_14)
  local flat, n = {}, 0
  for i = 1, #entries do
    local item = entries[i]
    local list = item[2]
    local text = list[2]
    local _, head = string.find(text, PLAIN)
    if not head or head > MAX_ID + 16 or string.sub(text, 1, 14) <= now_14 or list[3] or list[1] ~= 'm' then
      return nil
    end
    flat[n + 1], flat[n + 2] = item[1], text
    n = n + 2
  end
  return flat
end

-- Decide about entries one by one: give up what is malformed, expired or has crashed too often, hand out the rest in
-- groups. `tries` lists how often each was tried before, or is nil. Returns how many were handed out.
local function admit(P, lane, entries, tries, claim, groups)
  local plain, later, numbers, taken, handed = {}, {}, {}, {}, 0
  for i, item in ipairs(entries) do
    local entry, list = item[1], item[2]
    local attempts = (tries and tonumber(tries[i]) or 0) + 1
    local expiry, words, id, document = split_entry(list)
    if not expiry then
      bury_malformed(P, lane, entry, list)
    else
      local options = options_of(words)
      local limit = tonumber(options.r) or claim.max_retries
      if expiry <= claim.now_14 then
        bury(P, lane, entry, list, 'expired', 'its time to live ended before it was handled', attempts - 1, '0',
          claim.now, claim.life)
      elseif attempts > limit + 1 then
        bury(P, lane, entry, list, 'crashed', 'the process that handled it died or lost its lease, attempt '
          .. (attempts - 1) .. ' of ' .. (limit + 1), attempts - 1, '0', claim.now, claim.life)
      else
        handed = handed + 1
        local group = later
        if options.k then
          remove(P, lane, entry, id, #document)
          if options.o then
            finished_in_order(P, options.o, lane, entry)
          end
          keep_final(P, id, table.concat({
            'd', as_ms(claim.now), as_ms(claim.now), attempts, accepted_of(entry, options),
          }, ' '), claim.now, claim.life)
          group = taken
        elseif attempts == 1 then
          group = plain
        else
          numbers[#numbers + 1] = attempts
        end
        group[#group + 1] = entry
        group[#group + 1] = list[2]
      end
    end
  end
  if #plain > 0 then
    groups[#groups + 1] = { lane, 0, plain }
  end
  if #later > 0 then
    groups[#groups + 1] = { lane, 1, later, numbers }
  end
  if #taken > 0 then
    groups[#groups + 1] = { lane, 2, taken }
  end
  return handed
end

-- Messages of a lane that wait in `list` to be claimed again: at most `count`. Returns how many were handed out, and how
-- many read.
local function claim_again(P, list, lane, count, claim, groups)
  local again = redis.call('LPOP', list .. lane, count)
  if not again then
    return 0, 0
  end
  local handed = 0
  local entries = redis.call('XCLAIM', P .. 'q:' .. lane, GROUP, claim.consumer, 0, unpack(again))
  if #entries > 0 then
    local fields = {}
    for i, item in ipairs(entries) do
      fields[i] = lane .. ' ' .. item[1]
    end
    handed = admit(P, lane, entries, redis.call('HMGET', P .. 'tries', unpack(fields)), claim, groups)
  end
  return handed, #again
end

-- Up to `count` messages of a lane, first those that wait to be claimed again. Returns how many were handed out and how
-- many were read; fewer read than asked for means that the lane has no more.
local function claim_lane(P, lane, count, claim, groups)
  local stream, handed, read = P .. 'q:' .. lane, 0, 0
  if claim.again then
    handed, read = claim_again(P, P .. 'b:', lane, count, claim, groups)
  end
  if read < count then
    local answer = redis.call('XREADGROUP', 'GROUP', GROUP, claim.consumer, 'COUNT', count - read, 'STREAMS', stream, '>')
    if answer then
      local entries = answer[1][2]
      read = read + #entries
      local flat = all_plain(entries, claim.now_14)
      if flat then
        groups[#groups + 1] = { lane, 0, flat }
        handed = handed + #entries
      else
        handed = handed + admit(P, lane, entries, nil, claim, groups)
      end
    end
  end
  return handed, read
end

-- One suspect, unless the consumer has one already. A message that kills its process has others with it when it does; all
-- are suspects the second time, and as no process has two of them, it can not take these with it again and again until
-- they are given up in its place. Returns how many were handed out.
local function claim_suspect(P, claim, groups)
  local lane, entry = string.match(redis.call('HGET', P .. 'alone', claim.consumer) or '', '^(%d) (.*)$')
  if lane and #redis.call('XPENDING', P .. 'q:' .. lane, GROUP, entry, entry, 1, claim.consumer) > 0 then
    return 0
  end
  local looks = 0
  for n = 4, 1, -1 do
    local handed, read = 0, 1
    while handed == 0 and read > 0 and looks < DUE_LIMIT do -- those that are given up make way for the next
      handed, read = claim_again(P, P .. 's:', n, 1, claim, groups)
      looks = looks + 1
    end
    if handed > 0 then
      redis.call('HSET', P .. 'alone', claim.consumer, n .. ' ' .. groups[#groups][3][1])
      return handed
    end
  end
  return 0
end

-- What was given up while the lanes were read may have made the next message of its ordering key ready, in any lane.
local function note_moves(P, unread, empty)
  if order_moved then
    for lane = 1, 4 do
      unread[lane] = redis.call('XLEN', P .. 'q:' .. lane)
      empty[lane] = unread[lane] == 0
    end
    order_moved = false
  end
end

-- Read the lanes: each its share first, then what the shares left over, from the highest lane down.
-- Returns the groups, how many messages are still wanted, whether the scan was broken off, and which lanes have nothing
-- that waits.
local function claim_messages(P, claim, quotas)
  local groups, empty, unread, scanned, live = {}, {}, {}, 0, 0
  order_moved = false
  local left = quotas[1] + quotas[2] + quotas[3] + quotas[4]
  for lane = 1, 4 do
    unread[lane] = redis.call('XLEN', P .. 'q:' .. lane)
    empty[lane] = unread[lane] == 0
    live = live + (empty[lane] and 0 or 1)
  end
  local share = live > 1 -- one lane alone has all of it
  claim.again = redis.call('EXISTS', P .. 'b:1', P .. 'b:2', P .. 'b:3', P .. 'b:4') > 0
  if suspects_wait(P) then
    local handed = claim_suspect(P, claim, groups)
    left = left - handed
    claim.suspect = handed > 0
    note_moves(P, unread, empty)
  end
  while left > 0 and scanned < SCAN_LIMIT and not (empty[1] and empty[2] and empty[3] and empty[4]) do
    for lane = 4, 1, -1 do
      local count = math.min(share and quotas[lane] or left, left)
      if count > 0 and not empty[lane] then
        local handed, read = claim_lane(P, lane, count, claim, groups)
        scanned = scanned + read
        unread[lane] = math.max(0, unread[lane] - read)
        empty[lane] = read < count or unread[lane] == 0
        left = left - handed
      end
    end
    share = false
    note_moves(P, unread, empty)
  end
  return groups, left, scanned >= SCAN_LIMIT, empty
end

-- Whether anything waits in the lanes that are not known to hold nothing.
local function more_waits(P, empty)
  if suspects_wait(P) then
    return true
  end
  for lane = 1, 4 do
    if not empty[lane] then
      local stream = P .. 'q:' .. lane
      if redis.call('EXISTS', P .. 'b:' .. lane) == 1 then
        return true
      end
      for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local info = fields_of(group)
        if info.name == GROUP and #redis.call('XRANGE', stream, '(' .. info['last-delivered-id'], '+', 'COUNT', 1) > 0 then
          return true
        end
      end
    end
  end
  return false
end

local function take_turn(keys, argv)
  local P, now = prefix_of(keys), now_ms()
  local consumer, life, again = argv[1], tonumber(argv[3]), string.sub(argv[9], 1, 1) == '1'
  if fenced(P, consumer, string.sub(argv[9], 2)) then
    return FENCED
  end
  local lease = redis.call('ZSCORE', P .. 'consumers', consumer)
  local refused_acks, at = '', nil
  if lease then
    at = acknowledge(P, argv, 12, now, life, again)
  else
    refused_acks, at = refused_acknowledgements(P, argv, 12, again)
  end
  local refused = finish(P, argv, at, consumer, not lease, again, now, life)
  if argv[10] == '1' then
    wake(P)
  end
  if not lease then
    return { refused_acks, refused, {}, -1, 1, now }
  end

  local quotas = { tonumber(argv[8]), tonumber(argv[7]), tonumber(argv[6]), tonumber(argv[5]) }
  if quotas[1] + quotas[2] + quotas[3] + quotas[4] == 0 then
    if suspects_wait(P) then -- it may be the end of one that makes room for the next
      wake(P)
    end
    return { refused_acks, refused, {}, -1, 0, now }
  end
  if tonumber(lease) <= now then -- ran out, but nobody noticed: nothing was taken
    redis.call('ZADD', P .. 'consumers', as_ms(now + tonumber(argv[2])), consumer)
  end
  local next_due = promote(P, now)
  local claim = { consumer = consumer, max_retries = tonumber(argv[4]), life = life, now = now, now_14 = as_14(now) }
  local groups, left, broken_off, empty = claim_messages(P, claim, quotas)
  if left > 0 and not broken_off then
    redis.call('DEL', P .. 'wake') -- nothing is left: whoever was to look need not
    if claim.suspect and suspects_wait(P) then -- but what only others may have
      wake(P)
    end
    return { refused_acks, refused, groups, set_alarm(P, consumer, next_due, now), 0, now }
  end
  -- No free slot remains here: if more is waiting, the next idle consumer looks; and another one keeps the alarm.
  if (next_due and drop_alarm_of(P, consumer)) or more_waits(P, empty) then
    wake(P)
  end
  return { refused_acks, refused, groups, -1, (broken_off and left > 0) and 2 or 0, now }
end

local function turn(keys, argv)
  notes = { tonumber(argv[11]), 0, {} }
  local answer = take_turn(keys, argv)
  if notes[2] + #notes[3] > 0 then
    answer[7] = notes
  end
  notes = nil
  return answer
end

define('turn', turn, { 'allow-oom' })
